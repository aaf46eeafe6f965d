"""`dpo init`: a profile to begin with, filled in from what lies around."""

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


class Template(StrEnum):
    """Kinds of models; each has a shipped profile of its name."""

    DENSE = "dense"
    MOE = "moe"
    MINIMIND3 = "minimind3"
    MINIMIND3_MOE = "minimind3-moe"
    HF = "hf"
    DEMO = "demo"


class Recipe(StrEnum):
    """What to do with the model."""

    LEARN = "learn"
    MINIMIND = "minimind"


def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What to call it: profiles/NAME.toml is written.")
    ],
    template: Annotated[
        Template | None,
        typer.Option(
            metavar="|".join(Template),
            help="The kind of model; else as the files that are found suggest.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        Recipe,
        typer.Option(
            metavar="|".join(Recipe),
            help="Values that visibly learn, or those of MiniMind's own script.",
        ),
    ] = Recipe.LEARN,
    minimind: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="A MiniMind checkout, with out/, model/ and dataset/, or any other folder; else "
            "the folders around are looked through.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a profile.")] = False,
) -> None:
    """Write a commented profile, filled in with the weights, tokenizer and pairs that lie around.

    Every key is in it with its meaning, and the reference script's value beside it.

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
            _refuse_reference(recipe)
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
        console.print(f"fill in what was not found: {', '.join(draft.missing)}")
    console.print(f"next: dpo check {path}")


def _target(name: str, force: bool) -> Path:
    """Where the profile goes.

    Raises:
        UsageError: the name is none, or is taken.
    """
    stem = name.removesuffix(".toml")
    if not stem or stem.startswith((".", "-")) or "/" in stem:
        raise UsageError(
            f"{name!r} is no name for a profile", "give a plain name: profiles/NAME.toml is written"
        )
    path = Path("profiles", f"{stem}.toml")
    if path.parent.is_file():
        raise UsageError(f"{path.parent} is a file, where a folder is to be", "go elsewhere")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "choose another name, or write over it with --force")
    return path


def _refuse_reference(recipe: Recipe) -> None:
    """MiniMind's script trains no other models.

    Raises:
        UsageError: its values are asked for all the same.
    """
    if recipe is Recipe.MINIMIND:
        raise UsageError(
            f"--recipe {recipe}: MiniMind's script trains MiniMind's models alone",
            "leave --recipe out: the values that are usual for other models are written",
        )


def _choose(
    found: FoundFiles, template: Template | None, console: Console
) -> tuple[Inputs, Template]:
    """Say what is there; of each kind take one that fits the template, which it may suggest."""
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
    return replace(inputs, rows=_count(inputs.pairs, console)), template or _suggested(inputs)


def _count(pairs: Path | None, console: Console) -> int | None:
    """Say what the pairs are read as; gives how many there are, as far as that can be known."""
    if pairs is None:
        return None
    try:
        places = Source((pairs,)).look()
    except DpoError as error:
        console.print(f"  they cannot be read as they are: {error.message}")
        console.print(f"  {error.remedy}")
        return None
    console.print(f"  {places.numbers:,} rows, read as {places.description}")
    return places.numbers


def _ask(what: str, paths: Sequence[Path]) -> Path | None:
    """The first, or on a terminal the one that the user chooses, where there is a choice."""
    if len(paths) < 2 or not sys.stdin.isatty():
        return paths[0] if paths else None
    typer.echo(f"{what}:")
    for number, path in enumerate(paths, start=1):
        typer.echo(f"  {number}  {show_path(path)}")
    while True:
        choice: int = typer.prompt("which?", default=1, type=int)
        if 1 <= choice <= len(paths):
            return paths[choice - 1]


def _suggested(inputs: Inputs) -> Template:
    """The template that the files suggest by their names, and the tokenizer by its template."""
    is_moe = inputs.model_weights is not None and is_moe_file(inputs.model_weights)
    if inputs.tokenizer is not None and minimind_version_of(inputs.tokenizer) == 3:
        return Template.MINIMIND3_MOE if is_moe else Template.MINIMIND3
    return Template.MOE if is_moe else Template.DENSE


def _print_found(console: Console, kinds: Mapping[str, Sequence[Path]], inputs: Inputs) -> None:
    """What lies around, with an arrow at what is taken."""
    taken = {inputs.model_weights, inputs.tokenizer, inputs.pairs}
    for kind, paths in kinds.items():
        console.print(f"{kind}: {len(paths) or 'none'} found")
        for path in paths:
            console.print(f"  {'->' if path in taken else '  '} {show_path(path)}")
