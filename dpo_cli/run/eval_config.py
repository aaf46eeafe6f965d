"""By what models are judged: a profile, the pairs, and the reference they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import UsageError
from dpo_cli.profile.inputs import (
    check_pairs,
    check_tokenizer,
    resolve_tokenizer,
    resolve_weights,
)
from dpo_cli.profile.load import load_profile, profile_from_values
from dpo_cli.profile.resolved import to_tables, values_affecting
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.table import Affects
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.models import NamedModel, tokenizer_of


@dataclass(frozen=True)
class EvalConfig:
    """What decides every figure of a model but its weights.

    Attributes:
        profile: objective, tokenizer, lengths, device, precision, and the pairs: all of
            `eval.path`, which then is `data.data_path` as well, or the share of that file that is
            held out.
        owner: the run whose profile it is; None where it is nobody's.
        is_own: whether the pairs are those that the profile holds out.
        reference: named to be compared with; None for the profile's own.
        has_reference: whether there is any; without one a model is judged by its own log-probs.
        runs_root: where `run:NAME` of the profile is looked for.
    """

    profile: Profile
    owner: RunDirectory | None
    is_own: bool
    reference: NamedModel | None
    has_reference: bool
    runs_root: Path


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
    """By what to judge some models: the profile of the first run among them, or the stated one.

    Weights alone, without a profile, are judged by its defaults, and against a named reference
    only.

    Args:
        models: at least one.
        runs_root: where runs lie.
        data: a file or folder of pairs, written as the profile's `data.format` and
            `data.columns` say; by default what the profile holds out.
        reference: by default the profile's.
        profile_path: a profile for weights that come with none: a path or a shipped name.
        tokenizer: its folder; by default the profile's, or a model's own.
        settings: keys of the profile that are others here.

    Returns:
        None where there are no pairs to judge by.

    Raises:
        UsageError: what is named is missing, or contradicts the rest.
    """
    if data is not None:
        check_pairs("--data", (data,))
    owner = next((model.run for model in models if model.run is not None), None)
    if owner is not None and profile_path is not None:
        raise UsageError(
            f"--profile: {owner.name} is judged by its own profile",
            "leave it out; --set changes a key",
        )
    source = owner.profile_path if owner is not None else profile_path
    if source is not None:
        profile = load_profile(source, settings).profile
        key, own = ("--tokenizer", tokenizer) if tokenizer else ("model.tokenizer", None)
        check_tokenizer(key, own or resolve_tokenizer(profile))
    elif data is not None:
        named = [*models, *([reference] if reference else [])]
        tokenizer = tokenizer_of(named, tokenizer, settings)
        stated = {"model.tokenizer": tokenizer.absolute(), "data.data_path": data.absolute()}
        profile = profile_from_values(stated, settings)
    else:
        return None
    if data is not None:
        profile = _with(profile, "eval", {"path": data.absolute(), "fraction": 0.0})
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
        has_reference=_has_reference(profile, reference, is_stated=source is not None),
        runs_root=runs_root,
    )


def split_of(settings: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """Return the values, by key, that decide which pairs of a file are held out, and how they are
    cut.

    Paths are left out: the contents of files are compared by fingerprint.
    """
    return values_affecting(Affects.SPLIT | Affects.HELD_OUT, settings, plain=True)


def _refuse_other_split(run: RunDirectory, profile: Profile) -> None:
    """Refuse to take other pairs for held out than a run did, since it was trained on some.

    Raises:
        UsageError: naming the keys.
    """
    own = split_of(to_tables(load_profile(run.profile_path).profile))
    changed = split_of(to_tables(profile))
    if others := [key for key in own if changed[key] != own[key]]:
        raise UsageError(
            f"--set {others[0]}: among the held-out pairs would be some that {run.name} was"
            " trained on",
            "leave it out, or name pairs of another file: --data FILE",
        )


def _has_reference(profile: Profile, named: NamedModel | None, *, is_stated: bool) -> bool:
    """Whether there is a reference; that of a stated profile must be there.

    Raises:
        UsageError: it is not, or none can be compared with.
    """
    if named is not None and not profile.dpo.needs_reference:
        raise UsageError(
            f"--reference: dpo.loss = {profile.dpo.title} compares with none",
            "to compare all the same: --set dpo.loss=sigmoid",
        )
    if not profile.dpo.needs_reference:
        return False
    if named is None and is_stated:
        resolve_weights(profile, profile.model.reference_key)
    return named is not None or is_stated


def _with(profile: Profile, table: str, changes: Mapping[str, object]) -> Profile:
    """A profile with other values in one of its tables."""
    changed = getattr(profile, table).model_copy(update=changes)
    return profile.model_copy(update={table: changed})
