"""`dpo merge`: a model between two others."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpo_cli.commands.complete import complete_model
from dpo_cli.commands.console import plain_console, print_evaluation
from dpo_cli.commands.export import Dtype
from dpo_cli.commands.options import (
    MODEL_HELP,
    DataOption,
    JsonOption,
    ProfileOption,
    ReferenceOption,
    RunsDirOption,
    SetOption,
    TokenizerOption,
)
from dpo_cli.errors import UsageError
from dpo_cli.formatting import format_size
from dpo_cli.run.directory import runs_root
from dpo_cli.run.eval_config import find_eval_config
from dpo_cli.run.models import find_model
from dpo_cli.ui.terminal.evaluation import as_json
from dpo_cli.ui.terminal.progress import PhaseBar


def merge(
    first: Annotated[
        str, typer.Argument(metavar="A", help=MODEL_HELP, autocompletion=complete_model)
    ],
    second: Annotated[
        str,
        typer.Argument(
            metavar="B",
            help="Another of the same architecture, such as the weights that A was trained from.",
            autocompletion=complete_model,
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="Where to write: a file, or of other models a directory."
        ),
    ],
    weight: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="W", help="The share of B: (1 - W) A + W B."),
    ] = 0.5,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="|".join(Dtype),
            help="Precision of the weights; else what A's run exports, or that of A's file.",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    reference: ReferenceOption = None,
    profile: ProfileOption = None,
    tokenizer: TokenizerOption = None,
    best: Annotated[
        bool,
        typer.Option(
            "--best", help="Of runs the state with the lowest held-out loss, not the newest."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
    json: JsonOption = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Merge two models of one descent, and say how A, B and what lies between them do.

    Each weight is (1 - W) times A's and W times B's, in float64. Merging a trained
    model with the one it began as gives back some of what it forgot, for some of what it learned;
    models that share no start give nonsense. Evaluated as by `dpo eval`, where there are pairs.

    Example: `dpo merge dense out/full_sft_512.pth --weight 0.3 --to out/merged_512.pth`
    """
    root = runs_root(runs_dir)
    named = [find_model(name, root) for name in (first, second)]
    path = _destination(to, force=force)
    if best and not any(model.run for model in named):
        raise UsageError("--best: neither of the two is a run", "leave it out")
    eval_config = find_eval_config(
        named,
        runs_root=root,
        data=data,
        reference=find_model(reference, root) if reference else None,
        profile_path=profile,
        tokenizer=tokenizer,
        settings=settings or (),
    )
    evaluation_result = None
    with PhaseBar(Console(stderr=True)) as bar:
        bar("loading", 0, 0, "")
        from dpo_cli.export.export import try_command  # imports torch: seconds
        from dpo_cli.export.merge import merge_models
        from dpo_cli.inference.evaluate import evaluate_models, model_settings
        from dpo_cli.inference.open_model import open_model
        from dpo_cli.models.saving import size_bytes

        stated = model_settings(eval_config) if eval_config else {}
        models = [open_model(its, stated, best=best and its.run is not None) for its in named]
        own = (its.tokenizer(settings or ()) for its in named)
        place = tokenizer or next((folder for folder in own if folder), None)
        merged = merge_models(models[0], models[1], weight, path, dtype, place)
        if eval_config is not None:
            evaluation_result = evaluate_models(eval_config, [*models, merged], bar)
    written = merged.model_weights
    if json:
        facts = {
            "path": str(path),
            "sha256": written.fingerprint,
            "dtype": written.dtype_name,
            "weight": weight,
            "evaluation": as_json(evaluation_result) if evaluation_result else None,
        }
        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
        return
    console = plain_console()
    console.print(
        f"wrote {path}: {format_size(size_bytes(path))}, {written.dtype_name}, {1 - weight:g} of "
        f"{models[0].title} and {weight:g} of {models[1].title}"
    )
    if evaluation_result is not None:
        print_evaluation(evaluation_result)
    else:
        console.print("not evaluated: --data FILE names preference pairs to judge by")
    if command := try_command(path, written.architecture):
        console.print(f"try it: {command}")


def _destination(path: Path, *, force: bool) -> Path:
    """Where to write, as an absolute path.

    Raises:
        UsageError: that cannot be, or a file is there that is not to be replaced.
    """
    path = path.expanduser().absolute()
    if not path.parent.is_dir():
        raise UsageError(f"--to: {path.parent} does not exist", "create it first")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "replace it with --force, or write elsewhere with --to")
    return path
