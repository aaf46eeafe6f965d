"""Usage errors of typer as our own errors: two lines, exit code 2.

typer contains a copy of click, or depends on click, depending on its version. Therefore errors are
recognized by the names of their classes.
"""

from __future__ import annotations

import re
from typing import Any

from dpo_cli.commands.help import command_path, parameter_names, usage
from dpo_cli.errors import UsageError
from dpo_cli.shell import program

_CHOICES = re.compile(r"(?P<value>'.*?'|\S+) is not one of (?P<choices>.*?)\.?", re.DOTALL)
_SHOULD = re.compile(r"^(Input|String|Value) should (be|have)")


def as_usage_error(error: BaseException) -> UsageError | None:
    """Convert a usage error of typer; None for any other exception."""
    if not hasattr(error, "format_message"):
        return None
    ctx: Any = getattr(error, "ctx", None)
    path = program() if ctx is None else " ".join([program(), *command_path(ctx).split()[1:]])
    see = f"{path} --help lists the options."
    message = str(getattr(error, "message", "") or "")
    match type(error).__name__:
        case "NoSuchOption":
            return _no_such_option(error.option_name, ctx, path, see)  # type: ignore[attr-defined]
        case "MissingParameter":
            parameter: Any = error.param  # type: ignore[attr-defined]
            is_option = parameter.param_type_name == "option"
            name = parameter.opts[0] if is_option else parameter.metavar
            return UsageError(f"{name} is missing", f"Usage: {usage(ctx)}" if ctx else see)
        case "BadOptionUsage":
            option = error.option_name  # type: ignore[attr-defined]
            if "requires" in message:
                return UsageError(f"{option} needs a value", see)
            return UsageError(f"{option} takes no value", see)
        case "BadParameter":
            return _bad_value(error, message, see)
    if match := re.fullmatch(r"No such command '(.*?)'\.(?: Did you mean (.*)\?)?", message, re.S):
        hint = f"; did you mean {match[2].replace(chr(39), '')}?" if match[2] else ""
        return UsageError(f"no command {match[1]}{hint}", f"{path} --help lists the commands.")
    if match := re.fullmatch(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", message, re.S):
        return UsageError(f"unexpected argument: {match[1]}", f"Usage: {usage(ctx)}")
    return UsageError(message.rstrip(".") or str(error), see)


def _no_such_option(option: str, ctx: Any, path: str, see: str) -> UsageError:
    """Explain an unknown option; a profile key or an argument of another tool is named."""
    options = parameter_names(ctx.command.params) if ctx is not None else []
    if "--set" in options:
        from dpo_cli.profile.unknown_keys import key_for_option  # loads the schema

        key, explanation = key_for_option(option)
        if key:
            return UsageError(
                f"no option {option}", f"It is a profile key: {path} ... --set {key}=VALUE"
            )
        if explanation:
            return UsageError(f"no option {option}: {explanation}", see)
    from dpo_cli.profile.text import did_you_mean

    return UsageError(f"no option {option}{did_you_mean(option, options)}", see)


def _bad_value(error: Any, message: str, see: str) -> UsageError:
    parameter = error.param
    if parameter is None:
        name = error.param_hint or ""
    elif parameter.param_type_name == "option":
        name = parameter.opts[0]
    else:
        name = parameter.metavar
    message = message.removeprefix("Value error, ").strip()
    message = _SHOULD.sub(r"must \2", message).split(", unable to parse")[0]
    message = message.replace("a valid integer", "a whole number").replace("valid number", "number")
    if match := _CHOICES.fullmatch(message):
        choices = match["choices"].replace("'", "")
        return UsageError(f"{name}: {match['value']} is not one of the values", f"Use {choices}.")
    return UsageError(f"{name}: {message.rstrip('.')}" if name else message.rstrip("."), see)
