"""Translation of another tool's settings to the draft of a profile; nothing is dropped silently."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_cli.errors import UsageError
from dpo_cli.files import expanded
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile.folder import is_model, longest_input
from dpo_cli.profile.foreign.command_lines import has_variable
from dpo_cli.profile.foreign.minimind import shipped_profile, usual_places
from dpo_cli.profile.foreign.rules import (
    Context,
    NoCounterpartError,
    Rule,
    is_equal,
    only,
    place,
    relative_path,
    to,
    whole,
)
from dpo_cli.profile.foreign.source import ForeignSettings
from dpo_cli.profile.hub import cached
from dpo_cli.profile.load import invalid_values, load_profile
from dpo_cli.profile.losses import LOSSES
from dpo_cli.profile.pairs import Data
from dpo_cli.profile.recipe import FILL_IN, Draft, Inputs, minimind_recipe
from dpo_cli.profile.text import show_value
from dpo_cli.profile.unknown_keys import EQUIVALENT, UNSUPPORTED, WITHOUT_EFFECT

_WIDTH = 94
_LONGEST_VALUE = 60
_LONGEST_ORIGIN = 32
_OFF = ("false", "no", "none", "null", "0", "0.0", "", "{}", "[]")
_SEVERAL_MACHINES = "set launch.nnodes, launch.node_rank and launch.rdzv_endpoint on each machine"
_PROCESSES = to("launch.nproc_per_node", whole)
_LAUNCHER: Mapping[str, Rule] = {
    **dict.fromkeys(("nproc_per_node", "num_processes", "NPROC_PER_NODE", "num_gpus"), _PROCESSES),
    **{name: only(_SEVERAL_MACHINES, 1) for name in ("nnodes", "num_machines", "NNODES")},
}
"""Options of torchrun and accelerate, and variables of ms-swift."""
_PAIRS = "../dataset/dpo.jsonl"


@dataclass
class Translation:
    """Draft of a profile from another tool's settings.

    Attributes:
        values: by key.
        origins: setting of each key, for example "trl: beta".
        differences: settings with a counterpart that does not do quite the same.
        missing: settings without a counterpart, with what that changes.
        unknown: settings that no table has.
        without_effect: settings that change nothing in a result, or are switched off.
        unread: parts of the file that are no settings or no literals.
        notes: remarks to print above a key.
        setters: settings that set a key, by key; the last one did.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    setters: dict[str, list[str]] = field(default_factory=dict)

    def report(self) -> Iterator[str]:
        """Yield the lines about everything that a reader should look at."""
        parts = {
            "Different here:": self.differences,
            "No counterpart:": self.missing,
            "Unknown, not used:": self.unknown,
            "Not read:": self.unread,
        }
        for title, entries in parts.items():
            if entries:
                yield title
                for entry in _by_reason(entries):
                    yield from _wrapped(_printable(entry))
        if self.without_effect:
            yield "Without effect on the result here:"
            yield from _wrapped(_printable(", ".join(dict.fromkeys(self.without_effect))))

    def draft(self) -> Draft:
        """Return the draft, with the report above its keys."""
        return Draft(
            self.values,
            self.notes,
            origins={key: _printable(each) for key, each in self.origins.items()},
            remarks=tuple(self.report()),
        )


def translate(
    settings: ForeignSettings,
    folder: Path,
    template: str | None = None,
    model: str | None = None,
    data: str | None = None,
) -> Translation:
    """Translate settings to a profile in `folder`.

    Args:
        settings: the tool's.
        folder: of the new profile.
        template: shipped profile with the defaults of MiniMind's script; None to guess it.
        model: model to train instead, as in --model.
        data: pairs to train on instead, as in --data.

    Raises:
        UsageError: a template is given for another tool than MiniMind.
    """
    tool = settings.tool
    if template and tool.name != "minimind":
        raise UsageError(
            f"--template has no effect on the settings of {tool.title}", "Leave --template out."
        )
    given = {name: value for name, value in settings.values.items() if value is not None}
    defaults = {name: value for name, value in tool.defaults(given).items() if name not in given}
    context = Context({**defaults, **given}, settings.folders, folder)
    result = Translation(unread=list(settings.unread))
    if tool.name == "minimind":
        _start_from_script(given, template, context, result)
    for key, value in tool.always.items():
        result.values[key] = value
        result.origins[key] = f"as {tool.title} does"
    for name, rule in tool.rules.items():  # in the order of the table: later rules take precedence
        if name in context.values:
            origin = f"{tool.name}: {name}" if name in given else f"{tool.name}'s default: {name}"
            _apply(rule, name, context.values[name], context, result, origin)
    for name, value in settings.launcher.items():
        if name in _LAUNCHER:
            _apply(_LAUNCHER[name], name, value, context, result, f"launcher: {name}")
        else:
            _without_rule(name, value, result)
    for name, value in settings.values.items():
        if name not in tool.rules and name in settings.referenced:
            result.without_effect.append(f"{name} (part of others)")
        elif name not in tool.rules:
            _without_rule(name, value, result)
        elif value is None and name not in defaults:
            result.without_effect.append(f"{name} (empty)")
    _drop_own_reference(result)
    for key, wanted, option in (
        ("model.weights", model, "--model"),
        ("data.data_path", data, "--data"),
    ):
        if wanted:
            here = Context({}, (Path.cwd(),), folder)
            result.values[key] = place(wanted, here)
            result.origins[key] = option
    _list_replaced(result)
    result.differences = [*context.differences, *result.differences]
    _choose_reduction(tool.title, result)
    _cap_length(result, folder)
    _drop_invalid(result, folder)
    return result


def _start_from_script(
    given: Mapping[str, Any], template: str | None, context: Context, result: Translation
) -> None:
    """Begin with the values of MiniMind's script, for the version that has these arguments."""
    folder = context.folders[0]
    shipped, guess = shipped_profile(given, folder)
    if guess and not template:
        result.differences.append(guess)
    name = template or shipped
    start = minimind_recipe(
        load_profile(Path(name)), Inputs(None, None, None), context.profile_folder
    )
    result.values |= start.values
    for key, places in usual_places(folder).items():
        result.notes[key] = FILL_IN
        if found := next(filter(None, map(context.find, places)), None):
            result.values[key] = relative_path(found.resolve(), context.profile_folder)
            result.notes.pop(key)
    result.origins |= dict.fromkeys(result.values, f"minimind's default ({name})")


def _apply(
    rule: Rule, name: str, value: Any, context: Context, result: Translation, origin: str
) -> None:
    """Apply one rule, and record what becomes of the setting."""
    shown = _shown(value)
    before = len(context.differences)
    try:
        if has_variable(value):
            raise NoCounterpartError("a variable of the shell, whose value is not known here")
        found = rule.convert(value, context)
    except NoCounterpartError as error:
        default = " (default)" if "default:" in origin else ""
        result.missing.append(f"{name} = {shown}{default}: {error}")
        return
    except ValueError as error:
        result.missing.append(f"{name} = {shown}: {error}; not used")
        return
    context.differences[before:] = [
        each if name in each else f"{name}: {each}" for each in context.differences[before:]
    ]
    for key, ours in found.items():
        if ours is None:
            continue
        result.values[key] = ours
        if "default:" not in origin:
            result.setters.setdefault(key, []).append(name)
        is_same = is_equal(ours, value) or (isinstance(value, str) and value in str(ours))
        is_long = len(shown) > _LONGEST_ORIGIN
        result.origins[key] = origin if is_same or is_long else f"{origin} = {shown}"
        result.notes.pop(key, None)
    if not found and not rule.is_part and "default:" not in origin:
        result.without_effect.append(f"{name} = {shown} (as here)")


def _without_rule(name: str, value: Any, result: Translation) -> None:
    """Record a setting that no rule reads."""
    parts = name.split(".")
    prefixes = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    names = (*prefixes, name.replace(".", "_"), parts[-1])
    if value is None:
        result.without_effect.append(f"{name} (empty)")
        return
    if any(each in WITHOUT_EFFECT for each in names):
        result.without_effect.append(name)
        return
    why = next((UNSUPPORTED[each] for each in names if each in UNSUPPORTED), None)
    if why is None:
        key = EQUIVALENT.get(parts[-1])
        result.unknown.append(f"{name} = {_shown(value)}" + (f": see {key}" if key else ""))
    elif str(value).strip().lower() in _OFF:
        result.without_effect.append(f"{name} = {_shown(value)}")
    else:
        result.missing.append(f"{name} = {_shown(value)}: {why}")


def _drop_own_reference(result: Translation) -> None:
    """Leave out a reference that is the starting weights, so that --model replaces both."""
    if result.values.get("model.reference") not in (None, result.values.get("model.weights")):
        return
    result.values.pop("model.reference", None)
    if origin := result.origins.pop("model.reference", ""):
        name = origin.partition(": ")[2].partition(" = ")[0]
        result.without_effect.append(f"{name} (the starting weights, as here)")


def _list_replaced(result: Translation) -> None:
    """List settings of which no value is left, because another one sets the same key."""
    last = {names[-1] for names in result.setters.values()}
    for names in result.setters.values():
        for name in names[:-1]:
            if name not in last:
                result.without_effect.append(f"{name} (replaced by {names[-1]})")


def _choose_reduction(title: str, result: Translation) -> None:
    """Set the reduction of the log-probs: a sum, unless the loss needs a mean."""
    if "dpo.reduction" in result.values:  # MiniMind's own
        return
    loss = result.values.get("dpo.loss", "sigmoid")
    names = loss if isinstance(loss, list) else [loss]
    means = [name for name in names if name in LOSSES and LOSSES[name].mean]
    if not means:
        result.values["dpo.reduction"] = "sum"
        result.origins["dpo.reduction"] = f"{title} sums the log-probs of a response"
        return
    result.values["dpo.reduction"] = "mean"
    result.origins["dpo.reduction"] = f"the loss {means[0]} uses means"
    if sums := [name for name in names if name not in means and name != "sft"]:
        result.differences.append(
            f"dpo.reduction: {means[0]} needs a mean, so {sums[0]} has one, too, where {title} has"
            " a sum"
        )


def _cap_length(result: Translation, folder: Path) -> None:
    """Shorten pairs to the positions of the model, if its configuration is on this machine."""
    key, weights = "data.max_seq_len", str(result.values.get("model.weights", ""))
    model = cached(weights) if is_on_hub(weights) else None
    if weights and not is_on_hub(weights):
        # The folder of the new profile need not exist: ".." is removed, not followed.
        model = Path(os.path.normpath(folder / expanded(weights)))
    positions = longest_input(model) if model and is_model(model) else None
    wanted = result.values.get(key, Data.model_fields["max_seq_len"].default)
    if positions is None or wanted <= positions:
        return
    name = result.setters.get(key, [key])[-1]
    result.values[key] = positions
    result.origins[key] = f"the model has {positions:,} positions; {name} = {wanted:,}"
    result.differences.append(
        f"{name} = {wanted:,}: the model has {positions:,} positions, so {key} = {positions}"
    )


def _drop_invalid(result: Translation, folder: Path) -> None:
    """Leave out values that a profile refuses, with the reason; add the paths to fill in."""
    for key, usual in (("model.weights", "../model"), ("data.data_path", _PAIRS)):
        is_missing = key not in result.values and "model.out_dir" not in result.values
        if is_missing or (key == "data.data_path" and key not in result.values):
            result.values[key] = usual
            result.notes[key] = FILL_IN
    while problems := {
        key: why
        for key, why in invalid_values(result.values, folder).items()
        if key in result.values
    }:
        for key, why in problems.items():
            origin = result.origins.pop(key, key)
            value = result.values.pop(key)
            reason = why.rstrip(".")
            result.missing.append(f"{origin} gives {key} = {_shown(value)}, which {reason}")
        if "data.data_path" not in result.values:
            result.values["data.data_path"] = _PAIRS
            result.notes["data.data_path"] = FILL_IN


def _by_reason(entries: list[str]) -> list[str]:
    """Join entries "NAME = VALUE: REASON" that have the same reason."""
    names: dict[str, list[str]] = {}
    for entry in dict.fromkeys(entries):
        name, colon, reason = entry.partition(": ")
        names.setdefault(reason if colon else entry, []).append(name)
    return [
        f"{', '.join(each)}: {reason}" if each != [reason] else reason
        for reason, each in names.items()
    ]


def _shown(value: Any) -> str:
    text = show_value(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _printable(text: str) -> str:
    """Replace characters that a comment of a profile cannot have."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _wrapped(entry: str) -> list[str]:
    return textwrap.wrap(
        entry,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
