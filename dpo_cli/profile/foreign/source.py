"""Settings of another tool in a file or a quoted command line, and the tool they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_cli.errors import UsageError
from dpo_cli.files import expanded
from dpo_cli.profile.folder import exists
from dpo_cli.profile.foreign.command_lines import Command, is_command, parse_command
from dpo_cli.profile.foreign.documents import read_text, read_yaml
from dpo_cli.profile.foreign.notebooks import parse_python, python_of_notebook
from dpo_cli.profile.foreign.rules import flat, is_equal
from dpo_cli.profile.foreign.tools import TOOLS, Tool
from dpo_cli.profile.text import near_path, show_path

_WHOLE = ("dataset", "datasets", "test_datasets", "dataset_mixer", "data_files")
"""Settings that are lists or tables of a tool's own, which one rule reads."""
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_MAX_SUBSTITUTIONS = 5
_MAX_TEXT = 10_000


@dataclass(frozen=True)
class ForeignSettings:
    """Settings of another tool.

    Attributes:
        tool: the tool.
        values: by dotted name.
        launcher: options and variables in front of the tool's program, by name.
        unread: parts that are not settings, or no literals, each with the reason.
        where: name of the file, for people.
        folders: folders that relative paths may belong to, the most likely first.
        referenced: names that other settings contain as "${name}".
    """

    tool: Tool
    values: Mapping[str, Any]
    launcher: Mapping[str, Any]
    unread: tuple[str, ...]
    where: str
    folders: tuple[Path, ...]
    referenced: frozenset[str]


@dataclass
class _Found:
    values: dict[str, Any] = field(default_factory=dict)
    launcher: Mapping[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    tools: tuple[str, ...] = ()


def read_foreign(source: str) -> ForeignSettings:
    """Read FILE, TOOL:FILE, or a command line.

    Raises:
        UsageError: it cannot be read, or the tool is not clear.
    """
    prefix, colon, rest = source.partition(":")
    named = TOOLS.get(prefix) if colon else None
    if named:
        source = rest.strip()
    path = expanded(source)
    if len(source) < _MAX_TEXT and exists(path):
        where, found = show_path(path), _read_file(path)
        folder = path.absolute().parent
    elif is_command(source):
        where, folder = "the command line", Path.cwd()
        found = _read_command(parse_command(source, "--from"), folder)
    else:
        is_short = len(source) < 100 and source.isprintable()
        shown, near = (source, near_path(path)) if is_short else ("this text", "")
        raise UsageError(
            f"--from {shown}: there is no such file, and it is no command line of a known"
            f" tool{near}",
            f"Name a file, or TOOL:FILE with TOOL one of {', '.join(TOOLS)}.",
        )
    tool = named or _detect(found, where)
    values = dict(flat(found.values, lambda name: name in tool.rules or name in _WHOLE))
    texts = [value for value in values.values() if isinstance(value, str)]
    referenced = frozenset(name for text in texts for name in _REFERENCE.findall(text))
    values = {name: _substitute(value, values) for name, value in values.items()}
    values = dict(_without_no(name, value, tool) for name, value in values.items())
    trainer = Path.cwd() / "trainer"  # where MiniMind's scripts are run
    folders = [trainer] if tool.name == "minimind" and trainer.is_dir() else []
    folders = [*folders, Path.cwd(), folder]
    return ForeignSettings(
        tool,
        values,
        found.launcher,
        tuple(found.unread),
        where,
        tuple(dict.fromkeys(folders)),
        referenced,
    )


def _read_file(path: Path) -> _Found:
    where, content = show_path(path), read_text(path)
    suffix = path.suffix.lower()
    if suffix == ".ipynb":
        return _read_python(python_of_notebook(content, where), where)
    if suffix == ".py":
        return _read_python(content, where)
    if suffix not in (".yaml", ".yml", ".json") and is_command(content):
        return _read_command(parse_command(content, where), path.absolute().parent)
    values, unread = read_yaml(content, where)
    return _Found(values, unread=unread)


def _read_python(content: str, where: str) -> _Found:
    settings = parse_python(content, where)
    tool = "unsloth" if settings.uses_unsloth else "trl"
    return _Found(settings.values, unread=settings.unread, tools=(tool,))


def _read_command(command: Command, folder: Path) -> _Found:
    """Read the options of a command, and below them the file that it names."""
    found = _Found(launcher=command.launcher)
    found.tools = tuple(tool.name for tool in TOOLS.values() if command.program in tool.programs)
    options = dict(command.options)
    if command.config:
        folders = (Path.cwd(), folder)
        paths = [each / expanded(command.config) for each in folders]
        path = next((each for each in paths if each.is_file()), paths[0])
        values, found.unread = read_yaml(read_text(path), show_path(path))
        found.values = dict(flat(values, lambda name: name in _WHOLE))
        options.pop("config", None)
    for word in command.words:
        name, equals, value = word.partition("=")
        if equals:  # torchtune and LLaMA-Factory: name=value
            options[name] = value
        elif word not in (command.config, "dpo", "rlhf", "train", "run", "launch"):
            found.unread.append(f"{word}: not an option")
    found.values |= options
    return found


def _detect(found: _Found, where: str) -> Tool:
    """Return the tool that a command names, or that has most of the names.

    Raises:
        UsageError: two tools have as many, or none has any.
    """
    names = {name for name, _ in flat(found.values, lambda name: False)} | found.values.keys()
    candidates = found.tools or tuple(TOOLS)
    if len(candidates) == 1:
        return TOOLS[candidates[0]]
    counts = {name: len(TOOLS[name].marks & names) for name in candidates}
    best = [name for name, count in counts.items() if count == max(counts.values())]
    if len(best) == 1 and counts[best[0]] > 0:
        return TOOLS[best[0]]
    which = "settings of no known tool" if not max(counts.values()) else "may belong to two tools"
    raise UsageError(
        f"{where}: {which}",
        f"Name the tool: --from TOOL:FILE, with TOOL one of {', '.join(best)}.",
    )


def _without_no(name: str, value: Any, tool: Tool) -> tuple[str, Any]:
    """Return NAME = false for no_NAME = true, as transformers' parser of arguments does."""
    is_negated = name.startswith("no_") and name not in tool.rules and is_equal(value, True)
    return (name.removeprefix("no_"), False) if is_negated else (name, value)


def _substitute(value: Any, values: Mapping[str, Any]) -> Any:
    """Replace "${name}" by the setting of that name, as OmegaConf does."""
    for _ in range(_MAX_SUBSTITUTIONS):
        if not isinstance(value, str) or len(value) > _MAX_TEXT or not _REFERENCE.search(value):
            break
        value = _REFERENCE.sub(lambda match: str(values.get(match[1], match[0]))[:_MAX_TEXT], value)
    return value
