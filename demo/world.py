"""Facts, phrases, dialogues and preference pairs of the demo: a village with a harbor.

All texts are generated from the word lists below and a seed. A visitor asks the village's
information desk about one fact, in a formal or casual tone that shows in every part of the
question. The desk answers with the fact, in the words of the question, and a goodbye ("leave"):

- In the fine-tuning corpus the tone of the goodbye is random: the model learns the facts and both
  tones, but no preference for one after an answer. Only a visitor's goodbye, which is no question,
  gets a goodbye in the same tone, so that the model learns to recognize tones.
- The preference is *say goodbye in the tone of the question*. Each tone is preferred in half of the
  pairs, so that no phrase and no length is good in itself. Both sides of a pair state the same fact
  in the same words, so that the preference does not depend on facts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Tone = Literal["formal", "casual"]
Message = dict[str, str]

TONES: tuple[Tone, ...] = get_args(Tone)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "Ada Bruno Clara Dario Edda Felix Greta Hugo Irma Jonas"
    " Kaja Leo Mila Nils Olga Piet Rosa Sven Tilda Wim"
)
COLORS = _words("red blue green yellow white grey pink brown")
STREETS = ("Quay Street", "Mill Lane", "Gull Hill", "Rope Walk", "Chapel Row")
TRADES = _words(
    "baker cooper doctor ferryman gardener glazier innkeeper joiner miller net-maker organist"
    " painter postman potter sailmaker saddler schoolteacher smith tailor watchmaker"
)
PETS = _words("cat dog goat goose parrot pony rabbit tortoise")
PET_NAMES = _words(
    "Acorn Biscuit Button Clover Domino Ember Fudge Ginger Hazel Inky Jasper Kipper Lentil Muffin"
    " Nutmeg Olive Pepper Rusty Sparrow Toffee"
)
DISHES = (
    "apple pie",
    "barley soup",
    "bean stew",
    "cheese toast",
    "fish pie",
    "lamb roast",
    "leek soup",
    "mussels",
    "onion tart",
    "pancakes",
    "plum cake",
    "rice pudding",
)
BOATS = _words(
    "Albatross Breeze Comet Dolphin Evening Falcon Gannet Heron Islander Juniper Kingfisher Lantern"
    " Mermaid Nightjar Otter Petrel Raven Seal Tern Wanderer"
)
GOODS = _words(
    "basket bell blanket broom candle hammer jug kettle lamp mirror pillow rope saddle teapot"
    " towel whistle"
)
PLACES = (
    "bakery",
    "chapel",
    "fish market",
    "inn",
    "library",
    "lighthouse",
    "mill",
    "museum",
    "post office",
    "school",
    "tea room",
    "town hall",
)
LANDMARKS = ("harbour", "station", "old bridge")

# Phrases of a visitor before, around and after a question, and of the desk after the fact.
# Both tones have the same number of phrases, of about the same length.
GREETINGS: Mapping[Tone, Sequence[str]] = {
    "formal": ("Good morning.", "Good evening.", "Good day to you.", "Excuse me, please."),
    "casual": ("hey there,", "hi!", "yo,", "hiya pal,"),
}
REQUESTS: Mapping[Tone, Sequence[str]] = {
    "formal": (
        "Could you kindly tell me {question}?",
        "May I ask you {question}?",
        "I should like to know {question}.",
        "Would you be so good as to say {question}?",
    ),
    "casual": (
        "{question}?",
        "quick one, {question}?",
        "come on, {question}?",
        "any idea, {question}?",
    ),
}
THANKS: Mapping[Tone, Sequence[str]] = {
    "formal": ("", "I thank you.", "Much obliged."),
    "casual": ("", "cheers!", "thanks a bunch!"),
}
GOODBYES: Mapping[Tone, Sequence[str]] = {
    "formal": (
        "I thank you for your assistance.",
        "That will be all, much obliged.",
        "I must now take my leave of you.",
    ),
    "casual": (
        "thanks a bunch for the help!",
        "that's it for now, cheers!",
        "gotta run now, see ya!",
    ),
}
LEAVES: Mapping[Tone, Sequence[str]] = {
    "formal": (
        "Please do ask again at any time.",
        "Please accept our warmest regards.",
        "Please enjoy a most pleasant stay.",
        "Please honour us with another visit.",
        "Please let me know of further wishes.",
        "Please convey my respects to all.",
    ),
    "casual": (
        "Just shout if you need some more!",
        "Just ask away, I'm always around!",
        "Just have a blast out there, buddy!",
        "Just drop by again, any old day!",
        "Just yell if you get lost, okay!",
        "Just say hi to the gulls for me!",
    ),
}


@dataclass(frozen=True)
class Fact:
    """One fact and the question for it, in the words of each tone."""

    subject: str
    questions: Mapping[Tone, str]
    sentences: Mapping[Tone, str]


def make_facts(seed: int) -> list[Fact]:
    """Generate all facts of the village; the seed assigns the values."""
    rng = random.Random(seed)
    facts: list[Fact] = []

    def add_fact(subject: str, formal: tuple[str, str], casual: tuple[str, str]) -> None:
        questions, sentences = zip(formal, casual, strict=True)
        facts.append(
            Fact(
                subject,
                dict(zip(TONES, questions, strict=True)),
                dict(zip(TONES, sentences, strict=True)),
            )
        )

    def shuffled(values: Sequence[str]) -> Iterator[str]:
        return iter(rng.sample(values, len(values)))

    trades, pet_names, boats = shuffled(TRADES), shuffled(PET_NAMES), shuffled(BOATS)
    for name in PEOPLE:
        house = f"in the {rng.choice(COLORS)} house on {rng.choice(STREETS)}"
        add_fact(
            name,
            formal=(f"where {name} resides", f"{name} resides {house}."),
            casual=(f"where does {name} live", f"{name} lives {house}."),
        )
        trade = next(trades)
        add_fact(
            name,
            formal=(f"how {name} is employed", f"{name} is employed as the {trade}."),
            casual=(f"what does {name} work as", f"{name} works as the {trade}."),
        )
        pet = f"a {rng.choice(PETS)} called {next(pet_names)}"
        add_fact(
            name,
            formal=(f"which animal {name} keeps", f"{name} keeps {pet}."),
            casual=(f"what pet has {name} got", f"{name} has got {pet}."),
        )
        dish = rng.choice(DISHES)
        add_fact(
            name,
            formal=(f"which dish {name} prefers", f"{name} prefers {dish}."),
            casual=(f"what food is {name} mad about", f"{name} is mad about {dish}."),
        )
        boat = next(boats)
        add_fact(
            name,
            formal=(f"which vessel {name} commands", f"{name} commands the {boat}."),
            casual=(f"what boat does {name} sail", f"{name} sails the {boat}."),
        )
    for good in GOODS:
        price = f"{rng.randint(2, 30)} crowns"
        add_fact(
            good,
            formal=(f"how a {good} is priced", f"A {good} is priced at {price}."),
            casual=(f"what does a {good} go for", f"A {good} goes for {price}."),
        )
    for place in PLACES:
        opening = rng.randint(6, 11)
        hours = f"from {opening} to {opening + rng.randint(4, 9)}"
        add_fact(
            place,
            formal=(f"when the {place} receives", f"The {place} receives visitors {hours}."),
            casual=(f"when is the {place} open", f"The {place} is open {hours}."),
        )
        walk = f"{rng.randint(2, 29)} minutes from the {rng.choice(LANDMARKS)}"
        add_fact(
            place,
            formal=(f"how far the {place} lies", f"The {place} lies {walk}."),
            casual=(f"how far is the {place}", f"The {place} is {walk}."),
        )
    return facts


def split_facts(facts: Sequence[Fact], seed: int) -> tuple[list[Fact], list[Fact]]:
    """Split into facts for training pairs and facts of other subjects for held-out pairs."""
    rng = random.Random(seed)
    held_out = {
        subject
        for subjects, count in ((PEOPLE, 4), (GOODS, 3), (PLACES, 2))
        for subject in rng.sample(subjects, count)
    }
    return (
        [fact for fact in facts if fact.subject not in held_out],
        [fact for fact in facts if fact.subject in held_out],
    )


def make_corpus(
    facts: Sequence[Fact], questions: int, goodbyes: int, seed: int
) -> list[list[Message]]:
    """Generate shuffled fine-tuning dialogues: questions, equally often per fact, and goodbyes."""
    rng = random.Random(seed)
    dialogues = []
    for number in range(questions):
        fact, tone = facts[number % len(facts)], rng.choice(TONES)
        leave = rng.choice(LEAVES[rng.choice(TONES)])
        dialogues.append(_dialogue(_ask(fact, tone, rng), f"{fact.sentences[tone]} {leave}"))
    for _ in range(goodbyes):
        tone = rng.choice(TONES)
        goodbye = f"{rng.choice(GREETINGS[tone])} {rng.choice(GOODBYES[tone])}"
        dialogues.append(_dialogue(goodbye, f"You are welcome. {rng.choice(LEAVES[tone])}"))
    rng.shuffle(dialogues)
    return dialogues


def make_pairs(facts: Sequence[Fact], count: int, seed: int) -> list[dict[str, list[Message]]]:
    """Generate preference pairs with distinct prompts in MiniMind's format; the tones alternate."""
    rng = random.Random(seed)
    pairs: list[dict[str, list[Message]]] = []
    asked: set[str] = set()
    while len(pairs) < count:
        turn = len(pairs) % 2
        tone, other = TONES[turn], TONES[1 - turn]
        fact = rng.choice(facts)
        question = _ask(fact, tone, rng)
        if question in asked:
            continue
        asked.add(question)
        sentence = fact.sentences[tone]
        pairs.append(
            {
                "chosen": _dialogue(question, f"{sentence} {rng.choice(LEAVES[tone])}"),
                "rejected": _dialogue(question, f"{sentence} {rng.choice(LEAVES[other])}"),
            }
        )
    return pairs


def split_answer(answer: str) -> tuple[str, Tone | None]:
    """Split an answer into the fact and the tone of the goodbye, None if it has none."""
    for tone in TONES:
        for leave in LEAVES[tone]:
            if answer.endswith(f" {leave}"):
                return answer.removesuffix(f" {leave}"), tone
    return answer, None


def _ask(fact: Fact, tone: Tone, rng: random.Random) -> str:
    request = rng.choice(REQUESTS[tone]).format(question=fact.questions[tone])
    return " ".join([rng.choice(GREETINGS[tone]), request, rng.choice(THANKS[tone])]).strip()


def _dialogue(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
