"""`dpo init`: write a first profile from the files that are found."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpo_cli.commands.console import plain_console
from dpo_cli.data.sources import Source
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import write_text_atomically
from dpo_cli.profile.discover import (
    FoundFiles,
    discover_around,
    discover_in,
    is_moe_file,
    minimind_version_of,
)
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.recipe import (
    Inputs,
    copy_profile,
    huggingface_recipe,
    learning_recipe,
    minimind_recipe,
)
from dpo_cli.profile.template import SCHEMA_NAME, render, schema_text
from dpo_cli.profile.text import show_path
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.ui.terminal.console import echo


class Template(StrEnum):
    """Kind of model; each has a shipped profile of the same name."""

    DENSE = "dense"
    MOE = "moe"
    MINIMIND3 = "minimind3"
    MINIMIND3_MOE = "minimind3-moe"
    HF = "hf"
    DEMO = "demo"


class Recipe(StrEnum):
    """Set of training values."""

    LEARN = "learn"
    MINIMIND = "minimind"


def init(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the profile: profiles/NAME.toml is written."),
    ],
    template: Annotated[
        Template | None,
        typer.Option(
            metavar="|".join(Template),
            help="Choose the kind of model. Default: guessed from the files that are found.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        Recipe,
        typer.Option(
            metavar="|".join(Recipe),
            help="Write values that learn visibly, or the values of MiniMind's own script.",
        ),
    ] = Recipe.LEARN,
    minimind: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Search this folder for files, for example a MiniMind checkout (out/, model/). "
            "Default: the folders around the working directory.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing profile.")] = False,
) -> None:
    """Write a commented profile with the weights, tokenizer and pairs found near you.

    Every key is listed with its meaning and the value of MiniMind's script.

    Example: `dpo init first --minimind ../minimind`
    """
    path = _target(name, force)
    console = plain_console()
    reference = load_profile(Path(Template.DENSE))
    if template is Template.DEMO:
        draft, origin = copy_profile(load_profile(Path(template)), path.parent), "template demo"
    else:
        found = discover_in(minimind.absolute()) if minimind else discover_around(Path.cwd())
        inputs, kind = _choose(found, template, console)
        shipped = load_profile(Path(kind))
        if kind is Template.HF:
            _refuse_minimind_recipe(recipe)
            draft, origin = huggingface_recipe(shipped, inputs, path.parent), f"template {kind}"
        else:
            reference = shipped
            write_draft = learning_recipe if recipe is Recipe.LEARN else minimind_recipe
            draft, origin = write_draft(shipped, inputs, path.parent), f"{kind}, recipe {recipe}"
    text = render(draft, f"{path.stem}: written by dpo init ({origin}).", reference.profile)
    with explain_disk_errors(path.parent):
        path.parent.mkdir(exist_ok=True)
        write_text_atomically(path.parent / SCHEMA_NAME, schema_text())
        write_text_atomically(path, text)
    console.print(f"wrote {path} ({origin})")
    if draft.missing:
        console.print(f"not found, fill in: {', '.join(draft.missing)}")
    if draft.caution:
        console.print(f"few pairs: {draft.caution}")
    console.print(f"next: dpo check {path}")


def _target(name: str, force: bool) -> Path:
    """Return the path of the new profile.

    Raises:
        UsageError: the name is invalid, or the file exists.
    """
    stem = name.removesuffix(".toml")
    if not stem or stem.startswith((".", "-")) or "/" in stem:
        raise UsageError(
            f"{name!r} is not a valid name for a profile",
            "Use a plain name; profiles/NAME.toml is written.",
        )
    path = Path("profiles", f"{stem}.toml")
    if path.parent.is_file():
        raise UsageError(
            f"{path.parent} is a file, not a folder", "Run dpo init in another folder."
        )
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "Choose another name, or replace it with --force.")
    return path


def _refuse_minimind_recipe(recipe: Recipe) -> None:
    """Refuse the minimind recipe for other models.

    Raises:
        UsageError: the recipe is minimind.
    """
    if recipe is Recipe.MINIMIND:
        raise UsageError(
            f"--recipe {recipe}: MiniMind's script trains only MiniMind models",
            "Leave --recipe out; usual values for other models are written.",
        )


def _choose(
    found: FoundFiles, template: Template | None, console: Console
) -> tuple[Inputs, Template]:
    """Print the files found, and choose one of each kind and a template that fits them."""
    checkpoints = sorted(found.weights, key=is_moe_file)
    tokenizers: Sequence[Path] = found.tokenizers
    if template is Template.HF or (template is None and found.models and not checkpoints):
        inputs = Inputs(_ask("models", found.models), None, _ask("pairs", found.pairs))
        _print_found(console, {"models": found.models, "pairs": found.pairs}, inputs)
        return replace(inputs, rows=_count(inputs.pairs, console)), Template.HF
    if template is not None:
        version = 3 if template.startswith("minimind3") else 2
        checkpoints = [c for c in checkpoints if is_moe_file(c) == template.endswith("moe")]
        tokenizers = [t for t in tokenizers if minimind_version_of(t) == version] or tokenizers
    inputs = Inputs(
        model_weights=_ask("weights", checkpoints),
        tokenizer=_ask("tokenizer", tokenizers),
        pairs=_ask("pairs", found.pairs),
    )
    kinds = {"weights": found.weights, "tokenizers": found.tokenizers, "pairs": found.pairs}
    _print_found(console, kinds, inputs)
    return replace(inputs, rows=_count(inputs.pairs, console)), template or _guess_template(inputs)


def _count(pairs: Path | None, console: Console) -> int | None:
    """Print the format of the pairs and return their number, or None if it is unknown."""
    if pairs is None:
        return None
    try:
        places = Source((pairs,)).look()
    except DpoError as error:
        console.print(f"  the pairs cannot be read: {error.message}")
        console.print(f"  {error.remedy}")
        return None
    console.print(f"  {places.numbers:,} rows, read as {places.description}")
    return places.numbers


def _ask(what: str, paths: Sequence[Path]) -> Path | None:
    """Let the user choose one of several paths on a terminal; else return the first."""
    if len(paths) < 2 or not sys.stdin.isatty():
        return paths[0] if paths else None
    echo(f"{what}:")
    for number, path in enumerate(paths, start=1):
        echo(f"  {number}  {show_path(path)}")
    while True:
        choice: int = typer.prompt("which?", default=1, type=int)
        if 1 <= choice <= len(paths):
            return paths[choice - 1]


def _guess_template(inputs: Inputs) -> Template:
    """Guess the template from the name of the weights and the template of the tokenizer."""
    is_moe = inputs.model_weights is not None and is_moe_file(inputs.model_weights)
    if inputs.tokenizer is not None and minimind_version_of(inputs.tokenizer) == 3:
        return Template.MINIMIND3_MOE if is_moe else Template.MINIMIND3
    return Template.MOE if is_moe else Template.DENSE


def _print_found(console: Console, kinds: Mapping[str, Sequence[Path]], inputs: Inputs) -> None:
    """Print the files found, with an arrow at the chosen ones."""
    taken = {inputs.model_weights, inputs.tokenizer, inputs.pairs}
    for kind, paths in kinds.items():
        console.print(f"{kind}: {len(paths) or 'none'} found")
        for path in paths:
            console.print(f"  {'->' if path in taken else '  '} {show_path(path)}")
