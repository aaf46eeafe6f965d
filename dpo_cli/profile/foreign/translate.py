"""Translation of another tool's settings to the draft of a profile; nothing is dropped silently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_cli.errors import UsageError
from dpo_cli.profile.foreign.command_lines import has_variable
from dpo_cli.profile.foreign.finish import (
    cap_length,
    choose_layers,
    choose_reduction,
    require_held_out,
    require_rate,
)
from dpo_cli.profile.foreign.minimind import shipped_profile, usual_places
from dpo_cli.profile.foreign.model_facts import model_folder
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
from dpo_cli.profile.foreign.translation import Translation, shown
from dpo_cli.profile.load import invalid_values, load_profile
from dpo_cli.profile.recipe import FILL_IN, Inputs, minimind_recipe
from dpo_cli.profile.text import did_you_mean
from dpo_cli.profile.unknown_keys import EQUIVALENT, UNSUPPORTED, WITHOUT_EFFECT

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
            _without_rule(name, value, result, tool.rules, defaults)
    for name, value in settings.values.items():
        if name not in tool.rules and name in settings.referenced:
            result.without_effect.append(f"{name} (part of others)")
        elif name not in tool.rules:
            _without_rule(name, value, result, tool.rules, defaults)
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
    result.without_effect += [
        each for each in context.without_effect if each.partition(" = ")[0] in given
    ]
    choose_reduction(tool.title, result)
    directory = model_folder(str(result.values.get("model.weights", "")), folder)
    cap_length(result, directory)
    if tool.name == "trl":
        choose_layers(context.values, directory, result)
    require_held_out(given, result)
    require_rate(tool.title, result)
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
    name = context.script = template or shipped
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
    written = shown(value)
    before = len(context.differences)
    try:
        if has_variable(value):
            raise NoCounterpartError("a variable of the shell, whose value is not known here")
        found = rule.convert(value, context)
    except NoCounterpartError as error:
        default = " (default)" if "default:" in origin else ""
        result.missing.append(f"{name} = {written}{default}: {error}")
        return
    except ValueError as error:
        result.missing.append(f"{name} = {written}: {error}; not used")
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
        is_long = len(written) > _LONGEST_ORIGIN
        result.origins[key] = origin if is_same or is_long else f"{origin} = {written}"
        result.notes.pop(key, None)
    if not found and not rule.is_part and "default:" not in origin:
        result.without_effect.append(f"{name} = {written} (as here)")


def _without_rule(
    name: str,
    value: Any,
    result: Translation,
    rules: Mapping[str, Rule],
    defaults: Mapping[str, Any],
) -> None:
    """Record a setting that no rule reads, with the name that it may be a misspelling of."""
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
        near = did_you_mean(name, rules, lambda each: _with_default(each, defaults))
        remark = f": see {key}" if key else near.replace("; ", ": ", 1)
        result.unknown.append(f"{name} = {shown(value)}{remark}")
    elif str(value).strip().lower() in _OFF:
        result.without_effect.append(f"{name} = {shown(value)}")
    else:
        result.missing.append(f"{name} = {shown(value)}: {why}")


def _with_default(name: str, defaults: Mapping[str, Any]) -> str:
    """Return the name of a setting, with the default that is used because it is not given."""
    return f"{name}, now {shown(defaults[name])} (default)" if name in defaults else name


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
            result.missing.append(f"{origin} gives {key} = {shown(value)}, which {reason}")
        if "data.data_path" not in result.values:
            result.values["data.data_path"] = _PAIRS
            result.notes["data.data_path"] = FILL_IN
