"""Modelfile: settings for Ollama beside a GGUF file.

Ollama renders conversations with a template in Go's language instead of the chat template in the
file. The texts around the turns are measured on the chat template, and the composition is compared
with it on conversations of the training.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.messages import Message
from dpo_cli.data.pairs import PreferencePair
from dpo_cli.models.huggingface import HuggingFace

MODELFILE = "Modelfile"

_MAX_CONTEXT = 4096
"""Context that Ollama has by default; a larger one takes memory that few answers need."""
_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Names in Ollama of settings in generation_config.json."""
_SYSTEM, _QUESTION, _ANSWER, _NEXT = "sXs1Ys", "qXq1Yq", "aXa1Ya", "qXq2Yq"


@dataclass(frozen=True)
class TurnTexts:
    """Texts of a chat template around the turns of user and assistant.

    Attributes:
        start: before the first question, without a system prompt.
        system_start, system_end: before a system prompt, and between it and the first question.
        header: between the last question and the answer that is generated.
        answered: between an earlier question and its answer.
        next: between an answer and the next question.
    """

    start: str
    system_start: str
    system_end: str
    header: str
    answered: str
    next: str

    def render(self, messages: Sequence[Message]) -> str | None:
        """Render a conversation up to the header of an answer, as `go_template` does.

        Returns:
            None if the roles do not alternate between user and assistant.
        """
        roles = [message["role"] for message in messages]
        has_system = roles[:1] == ["system"]
        turns = messages[has_system:]
        expected = ["user", "assistant"] * len(turns)
        if roles[has_system:] != expected[: len(turns)] or roles[-1:] != ["user"]:
            return None
        text = self.start
        if has_system:
            text = f"{self.system_start}{messages[0]['content']}{self.system_end}"
        for number, message in enumerate(turns, 1):
            after = self.next
            if message["role"] == "user":
                after = self.header if number == len(turns) else self.answered
            text += f"{message['content']}{after}"
        return text

    def go_template(self) -> str:
        """Return the template in Go's language."""
        start, system_start, system_end, header, answered, following = map(
            _go_text,
            (
                self.start,
                self.system_start,
                self.system_end,
                self.header,
                self.answered,
                self.next,
            ),
        )
        return (
            "{{ if .System }}" + system_start + "{{ .System }}" + system_end + "{{ else }}" + start
            + "{{ end }}{{ range $i, $_ := .Messages }}"
            "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            '{{ if eq .Role "user" }}{{ .Content }}{{ if $last }}' + header + "{{ else }}"
            + answered + '{{ end }}{{ else if eq .Role "assistant" }}{{ .Content }}'
            "{{ if not $last }}" + following + "{{ end }}{{ end }}{{ end }}"
        )  # fmt: skip


def measure_turns(tokenizer: ChatTokenizer) -> TurnTexts | None:
    """Measure the texts around turns; None if the template does not write each turn once."""
    system: Message = {"role": "system", "content": _SYSTEM}
    question: Message = {"role": "user", "content": _QUESTION}
    answer: Message = {"role": "assistant", "content": _ANSWER}
    following: Message = {"role": "user", "content": _NEXT}
    try:
        alone, instructed, continued = (
            tokenizer.prompt_text(messages)
            for messages in (
                [question],
                [system, question],
                [question, answer, following],
            )
        )
    except ValueError:
        return None
    start, found, header = alone.partition(_QUESTION)
    system_start, system_found, rest = instructed.partition(_SYSTEM)
    system_end, _, _ = rest.partition(_QUESTION)
    after_question = continued.partition(_QUESTION)[2]
    answered, answer_found, rest = after_question.partition(_ANSWER)
    between, next_found, _ = rest.partition(_NEXT)
    if not (found and system_found and answer_found and next_found):
        return None
    return TurnTexts(start, system_start, system_end, header, answered, between)


@dataclass(frozen=True)
class OllamaSettings:
    """Settings of a Modelfile.

    Attributes:
        template: template in Go's language; None if none computes the same prompts.
        parameters: names and values, as in the file.
    """

    template: str | None
    parameters: Sequence[tuple[str, str]]

    @property
    def text(self) -> str:
        """The settings as lines of a Modelfile."""
        lines = [] if self.template is None else [f'TEMPLATE """{self.template}"""']
        lines += [f"PARAMETER {name} {value}" for name, value in self.parameters]
        return "\n".join(lines) + "\n"


def ollama_settings(
    tokenizer: ChatTokenizer,
    pairs: Sequence[PreferencePair],
    stop_ids: Collection[int],
    model: HuggingFace,
) -> tuple[OllamaSettings, str]:
    """Return the settings for a model, and a warning if prompts differ from the training's.

    Args:
        tokenizer: tokenizer of the training.
        pairs: pairs with whose prompts the template is compared.
        stop_ids: tokens that end an answer.
        model: the model; its generation_config.json has parameters of sampling.

    Returns:
        The settings, and a warning or "".
    """
    generation = model.generation
    context = min(model.max_positions or _MAX_CONTEXT, _MAX_CONTEXT)
    parameters = [("num_ctx", str(context))]
    # Ollama's default of 1.1 changes the probabilities that the training has set.
    values = {"repetition_penalty": 1.0, **generation}
    if generation.get("do_sample") is False:
        values["temperature"] = 0.0
    for name, ollamas in _PARAMETERS.items():
        value = values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            parameters.append((ollamas, f"{value:g}"))
    for id in sorted(stop_ids):
        stop = tokenizer.decode([id]).replace("\\", "\\\\").replace('"', '\\"')
        parameters.append(("stop", f'"{stop}"'))
    turns = measure_turns(tokenizer)
    template = turns.go_template() if turns else None
    if turns is None or template is None or '"""' in template:
        warning = "the chat template has no form in a Modelfile, so Ollama uses one of its own"
        return OllamaSettings(None, parameters), warning
    prompts = [pair.chosen[:-1] for pair in pairs if pair.chosen[-1]["role"] == "assistant"]
    different = sum(turns.render(each) != tokenizer.prompt_text(each) for each in prompts)
    warning = ""
    if different:
        warning = (
            f"the Modelfile's template renders {different} of {len(prompts)} prompts differently"
            " than the training's chat template"
        )
    return OllamaSettings(template, parameters), warning


def _go_text(text: str) -> str:
    """Escape a text that Go's template language would read as code."""
    return text.replace("{{", '{{ "{{" }}')
