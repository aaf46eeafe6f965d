"""`dpo eval`: any model on any preference pairs."""

from __future__ import annotations

from json import dumps
from typing import Annotated

import typer
from rich.console import Console

from dpo_cli.commands.complete import complete_model
from dpo_cli.commands.console import print_evaluation
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
from dpo_cli.run.directory import runs_root
from dpo_cli.run.eval_config import find_eval_config
from dpo_cli.run.models import find_model
from dpo_cli.ui.terminal.evaluation import as_json
from dpo_cli.ui.terminal.progress import PhaseBar


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=complete_model)
    ],
    data: DataOption = None,
    reference: ReferenceOption = None,
    profile: ProfileOption = None,
    tokenizer: TokenizerOption = None,
    best: Annotated[
        bool,
        typer.Option(
            "--best", help="The run's state with the lowest held-out loss, not the newest."
        ),
    ] = False,
    json: JsonOption = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Evaluate any model on any preference pairs, with 95 % intervals, by language and length.

    accuracy: the share of pairs whose chosen answer has gained more on the reference than the
    rejected one; likelier: the share whose chosen answer the model finds likelier. A run is judged
    on its held-out pairs as it judged itself; a file by a --profile, or by --data and --tokenizer.

    Example: `dpo eval dense --data test.jsonl`
    """
    root = runs_root(runs_dir)
    named = find_model(model, root)
    if best and named.run is None:
        raise UsageError(f"--best: {named.title} is no run", "leave it out")
    eval_config = find_eval_config(
        [named],
        runs_root=root,
        data=data,
        reference=find_model(reference, root) if reference else None,
        profile_path=profile,
        tokenizer=tokenizer,
        settings=settings or (),
    )
    if eval_config is None:
        holder = named.run.name if named.run else profile
        raise UsageError(
            f"{holder} holds no pairs out" if holder else f"{named.title} comes with no pairs",
            "name a file of preference pairs: --data FILE",
        )
    with PhaseBar(Console(stderr=True)) as bar:
        bar("loading", 0, 0, "")
        from dpo_cli.inference.evaluate import (
            evaluate_models,
            model_settings,
        )  # imports torch: seconds
        from dpo_cli.inference.open_model import open_model

        evaluation_result = evaluate_models(
            eval_config, [open_model(named, model_settings(eval_config), best=best)], bar
        )
    if json:
        typer.echo(dumps(as_json(evaluation_result), indent=2, ensure_ascii=False))
    else:
        print_evaluation(evaluation_result)
