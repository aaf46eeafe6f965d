"""`dpo eval`: evaluate a model on preference pairs."""

from __future__ import annotations

from typing import Annotated

import typer

from dpo_cli.api.evaluation import evaluate_named
from dpo_cli.commands.complete import complete_model
from dpo_cli.commands.console import print_evaluation, print_json, say
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
from dpo_cli.run.directory import runs_root
from dpo_cli.run.models import find_model
from dpo_cli.ui.terminal.console import SafeConsole
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
    best: BestOption = False,
    json: JsonOption = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Evaluate any model on preference pairs, with 95 % intervals, by language and length.

    accuracy is the share of pairs whose chosen answer gained more log-prob against the reference
    than the rejected one. A run is evaluated on its held-out pairs exactly as during training. For
    a file or directory, name a --profile, or --data and --tokenizer.

    Example: `dpo eval dense --data test.jsonl`
    """
    named = find_model(model, runs_root(runs_dir), say)
    with PhaseBar(SafeConsole(stderr=True)) as bar:
        evaluation = evaluate_named(
            named,
            data,
            reference=reference,
            profile=profile,
            tokenizer=tokenizer,
            best=best,
            settings=settings,
            runs_dir=runs_dir,
            on_progress=bar,
        )
    if json:
        print_json(as_json(evaluation))
    else:
        print_evaluation(evaluation)
