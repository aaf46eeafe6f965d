"""`dpo merge`: average the weights of two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.complete import complete_model
from dpo_cli.commands.console import print_evaluation, print_json, say
from dpo_cli.commands.export import Dtype
from dpo_cli.commands.options import (
    MODEL_HELP,
    BestOption,
    DataOption,
    JsonOption,
    ProfileOption,
    ReferenceOption,
    RunsDirOption,
    SetOption,
    TokenizerOption,
)
from dpo_cli.errors import UsageError
from dpo_cli.files import expanded
from dpo_cli.formatting import format_size
from dpo_cli.run.directory import runs_root
from dpo_cli.run.eval_config import find_eval_config
from dpo_cli.run.models import find_model
from dpo_cli.run.protected import inputs_of_model, inputs_of_profile, require_free_of_inputs
from dpo_cli.ui.terminal.console import SafeConsole, line_console
from dpo_cli.ui.terminal.evaluation import as_json
from dpo_cli.ui.terminal.export import try_lines
from dpo_cli.ui.terminal.progress import PhaseBar


def merge(
    first: Annotated[
        str, typer.Argument(metavar="A", help=MODEL_HELP, autocompletion=complete_model)
    ],
    second: Annotated[
        str,
        typer.Argument(
            metavar="B",
            help="Model of the same architecture, for example the starting weights of A.",
            autocompletion=complete_model,
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Write to this file; for models other than MiniMind, this directory.",
        ),
    ],
    weight: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="W", help="Set the share of B: (1 - W) A + W B."),
    ] = 0.5,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="|".join(Dtype),
            help="Set the precision of the file. Default: that of A's exports, or of A's file.",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    reference: ReferenceOption = None,
    profile: ProfileOption = None,
    tokenizer: TokenizerOption = None,
    best: BestOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing file or directory.")
    ] = False,
    json: JsonOption = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Average the weights of two models that share a starting point, and evaluate the result.

    Each weight is (1 - W) times A's plus W times B's, computed in float64. Merging a trained model
    with its starting weights restores some of what the model forgot, and gives up some of what it
    learned. Models without a common start give nonsense. The result is evaluated as by `dpo eval`
    if there are held-out pairs.

    Example: `dpo merge dense out/full_sft_512.pth --weight 0.3 --to out/merged_512.pth`
    """
    root = runs_root(runs_dir)
    named = [find_model(name, root, say) for name in (first, second)]
    for model in named:
        require_free_of_inputs(expanded(to), inputs_of_model(model), "--to")
    path = _destination(to, force=force)
    if best and not any(model.run for model in named):
        raise UsageError("--best: neither model is a run", "Leave --best out.")
    eval_config = find_eval_config(
        named,
        runs_root=root,
        data=data,
        reference=find_model(reference, root, say) if reference else None,
        profile_path=profile,
        tokenizer=tokenizer,
        settings=settings or (),
    )
    if eval_config is not None:
        inputs = inputs_of_profile(eval_config.profile, "of the evaluation")
        require_free_of_inputs(path, inputs, "--to")
    evaluation = None
    with PhaseBar(SafeConsole(stderr=True)) as bar:
        bar("loading", 0, 0, "")
        from dpo_cli.export.merge import merge_models  # loads torch
        from dpo_cli.export.try_command import try_command
        from dpo_cli.inference.evaluate import evaluate_models, model_settings
        from dpo_cli.inference.open_model import open_model
        from dpo_cli.models.saving import size_bytes

        stated = model_settings(eval_config) if eval_config else {}
        models = [open_model(model, stated, best=best and model.run is not None) for model in named]
        own = (model.tokenizer(settings or ()) for model in named)
        place = tokenizer or next((folder for folder in own if folder), None)
        merged = merge_models(models[0], models[1], weight, path, dtype, place)
        if eval_config is not None:
            evaluation = evaluate_models(eval_config, [*models, merged], bar)
    written = merged.model_weights
    if json:
        facts = {
            "path": str(path),
            "sha256": written.fingerprint,
            "dtype": written.dtype_name,
            "weight": weight,
            "evaluation": as_json(evaluation) if evaluation else None,
        }
        print_json(facts)
        return
    console = line_console()
    console.print(
        f"wrote {path}: {format_size(size_bytes(path))}, {written.dtype_name}, {1 - weight:g} of "
        f"{models[0].title} and {weight:g} of {models[1].title}"
    )
    if evaluation is not None:
        print_evaluation(evaluation)
    else:
        console.print("not evaluated; to evaluate, name preference pairs with --data FILE")
    if command := try_command(path, written.architecture):
        for line in try_lines(command):
            console.print(line, soft_wrap=True)  # a command to copy whole


def _destination(path: Path, *, force: bool) -> Path:
    """Return the absolute path to write.

    Raises:
        UsageError: the parent directory is missing, or the path exists.
    """
    path = expanded(path).absolute()
    if not path.parent.is_dir():
        raise UsageError(f"--to: {path.parent} does not exist", "Create the directory first.")
    if path.exists() and not force:
        raise UsageError(
            f"{path} exists", "Replace it with --force, or choose another path with --to."
        )
    return path
