"""`dpo init`: write a first profile from the files of a project."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dpo_cli.commands.found_files import Chosen, Wanted, choose_files
from dpo_cli.commands.pair_facts import parse_columns
from dpo_cli.errors import UsageError
from dpo_cli.files import write_text_atomically
from dpo_cli.profile.discover import is_moe_file, minimind_version_of
from dpo_cli.profile.folder import longest_input
from dpo_cli.profile.foreign.source import read_foreign
from dpo_cli.profile.foreign.translate import translate
from dpo_cli.profile.load import LoadedProfile, load_profile
from dpo_cli.profile.recipe import (
    Draft,
    Inputs,
    copy_profile,
    huggingface_recipe,
    learning_recipe,
    minimind_recipe,
)
from dpo_cli.profile.template import SCHEMA_NAME, render, render_short, schema_text
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.console import line_console


class Template(StrEnum):
    """Kind of model; each has a shipped profile of the same name."""

    DENSE = "dense"
    MOE = "moe"
    MINIMIND2_2510 = "minimind2-2510"
    MINIMIND3 = "minimind3"
    MINIMIND3_MOE = "minimind3-moe"
    HF = "hf"
    LORA = "lora"
    DEMO = "demo"


_HUGGINGFACE = (Template.HF, Template.LORA)
"""Templates of Hugging Face models."""


class Recipe(StrEnum):
    """Set of training values."""

    LEARN = "learn"
    MINIMIND = "minimind"


def init(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the profile: profiles/NAME.toml is written."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Train this model: a weights file, a Hugging Face directory, hf:ORG/NAME, or the "
            "folder of a MiniMind checkout. Default: a model in the working directory or the "
            "folders below it.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Train on these preference pairs: a file, a folder, or hf:ORG/NAME, with "
            "@REVISION and :CONFIG/SPLIT where needed. Default: a file with the columns of pairs "
            "in the working directory or its data folders.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Names of the pairs' columns where they differ from the format's: "
            "prompt=question,chosen=best.",
            show_default=False,
        ),
    ] = None,
    download: Annotated[
        bool | None,
        typer.Option(
            "--download/--no-download",
            help="Download a model and a data set on the Hub now. Default: only the first file of "
            "the data set; dpo check and dpo train download the rest.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Use this tokenizer for a MiniMind weights file. Default: that of its checkout.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Translate the settings of another tool: a file of TRL, LLaMA-Factory, Axolotl, "
            "ms-swift, torchtune, open-instruct or Unsloth, TOOL:FILE where that is not clear, a "
            "shell script, or a command line in quotes, also of MiniMind's train_dpo.py.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write this file. Default: profiles/NAME.toml.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        Template | None,
        typer.Option(
            metavar="PROFILE",
            help=f"Start from a shipped profile: {', '.join(Template)}. Default: the one that fits "
            "the model.",
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
    full: Annotated[
        bool, typer.Option("--full", help="Write every key with its description.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing profile.")] = False,
) -> None:
    """Write a profile for the model and the preference pairs in this directory.

    The profile has the keys that matter, with values for this model and these pairs. A terminal
    asks where there is a choice, and for what is missing; the options answer in advance. Files
    outside of the directory are taken only if you name them.

    Example: `dpo init first --model ../minimind --data hf:ORG/NAME`
    """
    path = _target(name, out, force=force)
    console = line_console()
    script: LoadedProfile | None = None
    if settings is not None:
        _refuse_other_options(recipe, tokenizer, columns, download)
        draft, origin = _translated(settings, path, template, model, data, console)
    elif template is Template.DEMO:
        if model or data or tokenizer or columns:
            raise UsageError(
                "--template demo has its own files",
                "Leave out --model, --data, --tokenizer and --columns.",
            )
        draft, origin = copy_profile(load_profile(Path(template)), path.parent), "template demo"
    else:
        names = parse_columns(columns) if columns else {}
        kind_of_files = Template.HF if template in _HUGGINGFACE else template
        wanted = Wanted(path.stem, model, data, tokenizer, kind_of_files, names, download)
        chosen = choose_files(wanted, console)
        kind = _kind_of(chosen, template)
        shipped = load_profile(Path(kind))
        if kind in _HUGGINGFACE:
            _refuse_minimind_recipe(recipe)
            draft = huggingface_recipe(shipped, chosen.inputs, path.parent)
            origin = f"template {kind}"
        else:
            script = shipped
            write_draft = learning_recipe if recipe is Recipe.LEARN else minimind_recipe
            draft = write_draft(shipped, chosen.inputs, path.parent)
            origin = f"{kind}, recipe {recipe}"
        draft = _for_this_model(draft, chosen)
    title = f"{path.stem}: written by dpo init ({origin})."
    if full:
        text = render(draft, title, script.profile if script else None)
    else:
        text = render_short(draft, title, dpo_command("config", "show", str(path)))
    with explain_disk_errors(path.parent):
        path.parent.mkdir(exist_ok=True)
        write_text_atomically(path.parent / SCHEMA_NAME, schema_text())
        write_text_atomically(path, text)
    console.print(f"wrote {path} ({origin})")
    if draft.missing:
        console.print(f"not found, fill in: {', '.join(draft.missing)}")
    if draft.caution:
        console.print(f"few pairs: {draft.caution}")
    console.print(f"next: {dpo_command('check', str(path))}")


def _translated(
    settings: str,
    path: Path,
    template: Template | None,
    model: str | None,
    data: Path | None,
    console: Console,
) -> tuple[Draft, str]:
    """Translate another tool's settings, and print what is different."""
    foreign = read_foreign(settings)
    translation = translate(foreign, path.parent, template, model, str(data) if data else None)
    for line in translation.report():
        console.print(line)
    return translation.draft(), f"{foreign.tool.title}, {foreign.where}"


def _refuse_other_options(
    recipe: Recipe, tokenizer: Path | None, columns: str | None, download: bool | None
) -> None:
    """Refuse options that have no effect on another tool's settings.

    Raises:
        UsageError: one of them is given.
    """
    given = {
        "--recipe": recipe is not Recipe.LEARN,
        "--tokenizer": tokenizer is not None,
        "--columns": columns is not None,
        "--download": download is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise UsageError(
                f"{option} has no effect on the settings of --from",
                f"Leave {option} out, and change the profile that is written.",
            )


def _target(name: str, out: Path | None, *, force: bool) -> Path:
    """Return the path of the new profile.

    Raises:
        UsageError: the name is invalid, or the file exists.
    """
    stem = name.removesuffix(".toml")
    if not stem or stem.startswith((".", "-")) or "/" in stem:
        raise UsageError(
            f"{name!r} is not a valid name for a profile",
            "Use a plain name; profiles/NAME.toml is written, or the file of --out.",
        )
    path = out or Path("profiles", f"{stem}.toml")
    if path.suffix != ".toml":
        raise UsageError(f"--out {path}: a profile is a .toml file", f"Write --out {path}.toml.")
    if path.parent.is_file():
        raise UsageError(
            f"{path.parent} is a file, not a folder", "Run dpo init in another folder."
        )
    if not path.parent.parent.is_dir():
        raise UsageError(f"--out: {path.parent} does not exist", "Create the directory first.")
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


def _kind_of(chosen: Chosen, template: Template | None) -> Template:
    """Return the template of the chosen model.

    Raises:
        UsageError: the named template is for another kind of model.
    """
    if template is not None and chosen.is_huggingface != (template in _HUGGINGFACE):
        what = "a Hugging Face model" if chosen.is_huggingface else "a MiniMind weights file"
        raise UsageError(
            f"--template {template} does not fit {what}", "Leave --template out, or name a model."
        )
    if template is not None:
        return template
    return Template.HF if chosen.is_huggingface else _guess_template(chosen.inputs)


def _guess_template(inputs: Inputs) -> Template:
    """Guess the template from the name of the weights and the template of the tokenizer."""
    is_moe = inputs.model_weights is not None and is_moe_file(inputs.model_weights)
    if inputs.tokenizer is not None and minimind_version_of(inputs.tokenizer) == 3:
        return Template.MINIMIND3_MOE if is_moe else Template.MINIMIND3
    return Template.MOE if is_moe else Template.DENSE


def _for_this_model(draft: Draft, chosen: Chosen) -> Draft:
    """Put the model on the Hub into a draft, or the length that the model was made for."""
    values: dict[str, Any] = dict(draft.values)
    notes = dict(draft.notes)
    if chosen.hub:
        values["model.weights"] = chosen.hub
        notes.pop("model.weights", None)
    longest = longest_input(chosen.directory) if chosen.directory else None
    if longest is not None and longest < values["data.max_seq_len"]:
        values["data.max_seq_len"] = longest
        notes["data.max_seq_len"] = (f"This model has {longest:,} positions.",)
    return replace(draft, values=values, notes=notes)
