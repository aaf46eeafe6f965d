"""Configuration of an evaluation: profile, held-out pairs, and reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import UsageError
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile.inputs import (
    check_pairs,
    check_tokenizer,
    resolve_tokenizer,
    resolve_weights,
)
from dpo_cli.profile.load import load_profile, profile_from_values
from dpo_cli.profile.model_kind import ModelKind, kind_of_weights
from dpo_cli.profile.resolved import to_tables, values_affecting
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.table import Affects
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.models import NamedModel, tokenizer_of


@dataclass(frozen=True)
class EvalConfig:
    """All inputs of an evaluation except the weights of the evaluated model.

    Attributes:
        profile: objective, tokenizer, lengths, device, precision, and the pairs: all pairs of
            `eval.path` (then also in `data.data_path`), or the held-out share of
            `data.data_path`.
        owner: the run that the profile belongs to; None if it belongs to no run.
        is_own: the pairs are those that the profile holds out.
        reference: reference that the user named; None for the profile's.
        has_reference: there is a reference; without one only the model's own log-probs are
            evaluated.
        runs_root: directory of the runs, for `run:NAME` in the profile.
        default_kind: kind of the model whose defaults are used; None with a profile.
    """

    profile: Profile
    owner: RunDirectory | None
    is_own: bool
    reference: NamedModel | None
    has_reference: bool
    runs_root: Path
    default_kind: ModelKind | None = None


def find_eval_config(
    models: Sequence[NamedModel],
    *,
    runs_root: Path,
    data: Path | None = None,
    reference: NamedModel | None = None,
    profile_path: Path | None = None,
    tokenizer: Path | None = None,
    settings: Sequence[str] = (),
) -> EvalConfig | None:
    """Collect the inputs to evaluate models with.

    The profile is that of the first run among the models, or `profile_path`. Weights without a
    profile are evaluated with the defaults for the kind of the first model, and compared only with
    a named reference. Without one, log-probs are means over the response tokens.

    Args:
        models: the models to evaluate, at least one.
        runs_root: directory of the runs.
        data: file or folder of pairs, or name of a data set on the Hub, in the format of the
            profile's `data.format` and `data.columns`; by default the pairs that the profile holds
            out.
        reference: by default the profile's.
        profile_path: profile for weights that have none: a path or a shipped name.
        tokenizer: folder of the tokenizer; by default the profile's or the model's own.
        settings: changed keys of the profile, as KEY=VALUE.

    Returns:
        None if there are no pairs to evaluate on.

    Raises:
        UsageError: an input is missing, or contradicts another one.
    """
    if data is not None:
        check_pairs("--data", (data,))
    owner = next((model.run for model in models if model.run is not None), None)
    if owner is not None and profile_path is not None:
        raise UsageError(
            f"--profile: {owner.name} is evaluated with its own profile",
            "Leave out --profile; --set changes a key.",
        )
    source = owner.profile_path if owner is not None else profile_path
    if source is not None:
        profile = load_profile(source, settings).profile
        key, own = ("--tokenizer", tokenizer) if tokenizer else ("model.tokenizer", None)
        check_tokenizer(key, own or resolve_tokenizer(profile))
    elif data is not None:
        named = [*models, *([reference] if reference else [])]
        tokenizer = tokenizer_of(named, tokenizer, runs_root, settings)
        values = {
            # The kind of the model decides some defaults.
            "model.weights": str(models[0].path.absolute()).replace("$", "$$"),
            "model.tokenizer": tokenizer.absolute(),
            "data.data_path": _absolute(data),
        }
        if reference is None:
            # Only the ranking is evaluated, and a sum would prefer the shorter answer.
            values["dpo.reduction"] = "mean"
        profile = profile_from_values(values, settings)
    else:
        return None
    if data is not None:
        profile = _with(profile, "eval", {"path": _absolute(data), "fraction": 0.0})
    if (path := profile.eval.path) is not None:
        check_pairs("eval.path", (path,))
        profile = _with(profile, "data", {"data_path": path, "mixture_weights": None})
    elif profile.eval.fraction:
        check_pairs("data.data_path", profile.data.paths)
        if owner is not None:
            _refuse_other_split(owner, profile)
    else:
        return None
    if tokenizer is not None:
        profile = _with(profile, "model", {"tokenizer": tokenizer.absolute()})
    return EvalConfig(
        profile=profile,
        owner=owner,
        is_own=data is None,
        reference=reference,
        has_reference=_has_reference(profile, reference, is_given=source is not None),
        runs_root=runs_root,
        default_kind=None if source is not None else kind_of_weights(models[0].path.absolute()),
    )


def split_of(settings: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """Return the values, by key, that decide which pairs are held out and how they are cut.

    Paths are left out: the contents of files are compared by fingerprint.
    """
    return values_affecting(Affects.SPLIT | Affects.HELD_OUT, settings, plain=True)


def _refuse_other_split(run: RunDirectory, profile: Profile) -> None:
    """Check that the held-out pairs are those of the run: it was trained on the others.

    Raises:
        UsageError: a changed key changes the split.
    """
    own = split_of(to_tables(load_profile(run.profile_path).profile))
    changed = split_of(to_tables(profile))
    if others := [key for key in own if changed[key] != own[key]]:
        raise UsageError(
            f"{others[0]}: among the held-out pairs would be some that {run.name} was trained on",
            "Leave out the setting, or evaluate on another file.",
        )


def _has_reference(profile: Profile, named: NamedModel | None, *, is_given: bool) -> bool:
    """Return True if there is a reference; the reference of a given profile must exist.

    Raises:
        UsageError: its weights are missing, or a reference is named that the loss does not use.
    """
    if named is not None and not profile.dpo.needs_reference:
        raise UsageError(
            f"--reference: dpo.loss = {profile.dpo.title} uses no reference",
            'To compare with one anyway, set dpo.loss = "sigmoid".',
        )
    if not profile.dpo.needs_reference:
        return False
    if named is None and is_given:
        resolve_weights(profile, profile.model.reference_key)
    return named is not None or is_given


def _absolute(data: Path) -> Path:
    return data if is_on_hub(data) else data.absolute()


def _with(profile: Profile, table: str, changes: Mapping[str, object]) -> Profile:
    changed = getattr(profile, table).model_copy(update=changes)
    return profile.model_copy(update={table: changed})
