"""Missing model or pairs of a new profile: questions on a terminal, elsewhere one error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.commands.questions import ask_for, remark
from dpo_cli.errors import UsageError
from dpo_cli.formatting import format_size
from dpo_cli.machine import available_memory
from dpo_cli.profile.known import DATA, fitting_models
from dpo_cli.profile.text import show_path
from dpo_cli.shell import dpo_command

_NAMED = 3
_ANSWER = "a number, a path or hf:ORG/NAME"


@dataclass(frozen=True)
class Missing:
    """Files that a project lacks, and what could take their place.

    Attributes:
        model, pairs: True if there are none.
        models_outside, pairs_outside: files around the project.
        others: files of the project without the columns of pairs.
        problems: files of the project that cannot be read, each with the reason.
        kind: kind of the wanted model, see `Wanted`; models on the Hub are "hf".
    """

    model: bool
    pairs: bool
    models_outside: Sequence[Path]
    pairs_outside: Sequence[Path]
    others: Sequence[Path]
    problems: Sequence[str]
    kind: str | None

    def ask_model(self, check: Callable[[str], object]) -> str:
        """Ask for a model: one outside of the project, or one on the Hub that fits into memory."""
        choices = [(show_path(path), remark(path).strip()) for path in self.models_outside]
        if self.kind in (None, "hf"):
            choices += [
                (model.name, f"{_millions(model.parameters):>6}  {model.license}  {model.about}")
                for model in fitting_models(available_memory())
            ]
        return ask_for("model", choices, _ANSWER, check)

    def ask_pairs(self, check: Callable[[str], object]) -> str:
        """Ask for pairs: a file outside of the project, or a data set on the Hub."""
        choices = [(show_path(path), "") for path in self.pairs_outside]
        choices += [(data.name, f"{data.license}  {data.about}") for data in DATA]
        return ask_for("data", choices, _ANSWER, check)

    def error(self, name: str, model: str | None, data: Path | None) -> UsageError:
        """Return the error for what is missing, with the options that name it.

        Args:
            name: of the new profile.
            model, data: values of the options that are given.
        """
        missing = ["no model"] * self.model + ["no preference pairs"] * self.pairs
        options: list[str] = []
        if self.model or model:
            options += ["--model", model or "MODEL"]
        if self.pairs or data:
            options += ["--data", str(data or "DATA")]
        named = " and ".join(["MODEL"] * self.model + ["DATA"] * self.pairs)
        return UsageError(
            f"{' and '.join(missing)} in this directory",
            f"Name {named}, a path or hf:ORG/NAME: {dpo_command('init', name, *options)}"
            f"  To try dpo without files: {dpo_command('init', name, '--template', 'demo')}",
            [*self._details()],
        )

    def _details(self) -> Iterator[str]:
        if self.model:
            if self.models_outside:
                yield f"models outside of it: {_shown(map(show_path, self.models_outside))}"
            free = available_memory()
            yield (
                f"models on the Hub that {format_size(free)} of free memory can train: "
                + ", ".join(
                    f"{model.name} ({_millions(model.parameters)})"
                    for model in fitting_models(free)
                )
            )
        if self.pairs:
            if self.others:
                yield f"without columns of preference pairs: {_shown(map(show_path, self.others))}"
            yield from (f"not read: {problem}" for problem in self.problems)
            if self.pairs_outside:
                yield f"pairs outside of it: {_shown(map(show_path, self.pairs_outside))}"
            yield "data sets on the Hub: " + ", ".join(
                f"{data.name} ({data.about})" for data in DATA
            )


def _millions(parameters: int) -> str:
    return f"{round(parameters / 1e6):,}M"


def _shown(names: Iterator[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_NAMED]) + (", ..." if len(listed) > _NAMED else "")
