"""The little world of the demo: a harbour village, what is known of it, and how people talk there.

Everything is made up here, from word lists and a seed; nothing is taken from elsewhere. A visitor
asks the village's information desk about one fact, in one of two tones; the desk answers with that
fact, in one of the same two tones:

- The desk's fine-tuning corpus draws both tones independently: the model learns what is true and
  how each tone sounds, and holds no opinion on which one is due.
- The preference is *answer in the tone you were asked in*. Each tone is preferred in half of the
  pairs, so that no phrase, and no length, is good in itself: only the question tells.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Tone = Literal["formal", "casual"]
Message = dict[str, str]

TONES: tuple[Tone, ...] = get_args(Tone)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "Ada Bruno Clara Dario Edda Felix Greta Hugo Irma Jonas"
    " Kaja Leo Mila Nils Olga Piet Rosa Sven Tilda Wim"
)
COLOURS = _words("red blue green yellow white grey pink brown")
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

# What a visitor says before, around and after a question, and the desk before and after a fact.
# Lists of the two tones are of equal length, phrase by phrase about equally long.
GREETINGS: dict[Tone, tuple[str, ...]] = {
    "formal": ("Good morning.", "Good evening.", "Good day to you.", "Excuse me, please.", "Sir,"),
    "casual": ("hey there,", "hi!", "yo,", "hiya pal,", "psst,"),
}
REQUESTS: dict[Tone, tuple[str, ...]] = {
    "formal": (
        "Could you kindly tell me {indirect}?",
        "May I ask you {indirect}?",
        "I should like to know {indirect}.",
        "Would you be so good as to say {indirect}?",
    ),
    "casual": (
        "any idea {indirect}?",
        "quick one, {direct}?",
        "gotta know {indirect}!",
        "come on, {direct}?",
    ),
}
THANKS: dict[Tone, tuple[str, ...]] = {
    "formal": ("", "I thank you.", "Much obliged."),
    "casual": ("", "cheers!", "thanks a bunch!"),
}
OPENINGS: dict[Tone, tuple[str, ...]] = {
    "formal": (
        "Certainly.",
        "With pleasure.",
        "Thank you for asking.",
        "It is an honour to help.",
        "Allow me to answer.",
        "By all means.",
    ),
    "casual": (
        "Sure thing!",
        "No worries!",
        "Ha, easy one!",
        "Oh, I know that one!",
        "Got you covered!",
        "Yep, got it!",
    ),
}
CLOSINGS: dict[Tone, tuple[str, ...]] = {
    "formal": (
        "Please do ask again at any time.",
        "I remain entirely at your service.",
        "I wish you a most pleasant day.",
        "Kindly let me know of any further questions.",
        "It was a pleasure to be of assistance.",
        "May your stay in the village be agreeable.",
    ),
    "casual": (
        "Just shout if you need more!",
        "Catch you later, my friend!",
        "Have a great one out there!",
        "Hit me up if there's anything else you need!",
        "Piece of cake, ask me another!",
        "Enjoy the village, it's a fun place to be!",
    ),
}


@dataclass(frozen=True)
class Fact:
    """One thing that is true, as a sentence, and as questions that ask for it."""

    subject: str
    sentence: str
    direct: str
    indirect: str


def make_facts(seed: int) -> list[Fact]:
    """All that is known of the village; which value goes with whom depends on the seed."""
    rng = random.Random(seed)
    facts: list[Fact] = []

    def learn(subject: str, sentence: str, direct: str, indirect: str) -> None:
        facts.append(Fact(subject, sentence, direct, indirect))

    def shuffled(values: Sequence[str]) -> Iterator[str]:
        return iter(rng.sample(values, len(values)))

    trades, pet_names, boats = shuffled(TRADES), shuffled(PET_NAMES), shuffled(BOATS)
    for name in PEOPLE:
        learn(
            name,
            f"{name} lives in the {rng.choice(COLOURS)} house on {rng.choice(STREETS)}.",
            f"where does {name} live",
            f"where {name} lives",
        )
        learn(
            name,
            f"{name} works here as the {next(trades)}.",
            f"what does {name} do for a living",
            f"what {name} does for a living",
        )
        learn(
            name,
            f"{name} has a {rng.choice(PETS)} called {next(pet_names)}.",
            f"what pet does {name} have",
            f"what pet {name} has",
        )
        learn(
            name,
            f"{name} likes {rng.choice(DISHES)} best of all.",
            f"what does {name} like to eat",
            f"what {name} likes to eat",
        )
        learn(
            name,
            f"{name} sails a boat named the {next(boats)}.",
            f"which boat does {name} sail",
            f"which boat {name} sails",
        )
    for good in GOODS:
        learn(
            good,
            f"A {good} costs {rng.randint(2, 30)} crowns at the market.",
            f"how much is a {good}",
            f"how much a {good} is",
        )
    for place in PLACES:
        opens = rng.randint(6, 11)
        learn(
            place,
            f"The {place} is open from {opens} to {opens + rng.randint(4, 9)}.",
            f"when is the {place} open",
            f"when the {place} is open",
        )
        walk = f"{rng.randint(2, 29)} minutes on foot from the {rng.choice(LANDMARKS)}"
        learn(
            place,
            f"The {place} is {walk}.",
            f"how far is the {place}",
            f"how far the {place} is",
        )
    return facts


def split_facts(facts: Sequence[Fact], seed: int) -> tuple[list[Fact], list[Fact]]:
    """Facts for the training pairs, and facts of other subjects for the held-out ones."""
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


def make_corpus(facts: Sequence[Fact], count: int, seed: int) -> list[list[Message]]:
    """Dialogues to fine-tune on: each answer's tone is a coin's toss, whatever the question's."""
    rng = random.Random(seed)
    dialogues = []
    for number in range(count):
        fact = facts[number % len(facts)]
        dialogues.append(
            _dialogue(_ask(fact, rng.choice(TONES), rng), _answer(fact, rng.choice(TONES), rng))
        )
    rng.shuffle(dialogues)
    return dialogues


def make_pairs(facts: Sequence[Fact], count: int, seed: int) -> list[dict[str, Any]]:
    """Preference pairs over different prompts, in MiniMind's format; the tones take turns."""
    rng = random.Random(seed)
    pairs: list[dict[str, Any]] = []
    asked: set[str] = set()
    while len(pairs) < count:
        tone: Tone = TONES[len(pairs) % 2]
        other: Tone = TONES[1 - len(pairs) % 2]
        fact = rng.choice(facts)
        question = _ask(fact, tone, rng)
        if question in asked:
            continue
        asked.add(question)
        pairs.append(
            {
                "chosen": _dialogue(question, _answer(fact, tone, rng)),
                "rejected": _dialogue(question, _answer(fact, other, rng)),
            }
        )
    return pairs


def tone_of(text: str) -> Tone | None:
    """The tone in which a question or an answer begins; None if it is neither's."""
    for tone in TONES:
        if text.startswith((*GREETINGS[tone], *OPENINGS[tone])):
            return tone
    return None


def fact_in(answer: str) -> str:
    """The sentence that an answer of the corpus has between its opening and its closing."""
    for tone in TONES:
        for opening in OPENINGS[tone]:
            answer = answer.removeprefix(opening)
        for closing in CLOSINGS[tone]:
            answer = answer.removesuffix(closing)
    return answer.strip()


def _ask(fact: Fact, tone: Tone, rng: random.Random) -> str:
    request = rng.choice(REQUESTS[tone]).format(direct=fact.direct, indirect=fact.indirect)
    return " ".join([rng.choice(GREETINGS[tone]), request, rng.choice(THANKS[tone])]).strip()


def _answer(fact: Fact, tone: Tone, rng: random.Random) -> str:
    return " ".join([rng.choice(OPENINGS[tone]), fact.sentence, rng.choice(CLOSINGS[tone])])


def _dialogue(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
