"""`dpo cache`: size and removal of the files that save time between runs."""

from __future__ import annotations

import time
from typing import Any

import typer

from dpo_cli.commands.console import print_json
from dpo_cli.commands.group import HelpGroup
from dpo_cli.commands.help import HelpCommand
from dpo_cli.commands.options import DryRunOption, JsonOption
from dpo_cli.errors import DpoError
from dpo_cli.formatting import format_count, format_duration, format_size
from dpo_cli.run.caches import KINDS, entries, remove, require_cache_directory
from dpo_cli.ui.terminal.console import echo, line_console

cache = typer.Typer(name="cache", cls=HelpGroup, no_args_is_help=True, add_completion=False)


@cache.callback()
def about() -> None:
    """Show or empty the cache of encoded rows and reference log-probs.

    Cached files are named by their content, verified before use, and computed again if missing.
    The cache is in DPO_CACHE_DIR, else in XDG_CACHE_HOME, else in ~/.cache/dpo.

    Example: `dpo cache size`
    """


@cache.command(name="dir", cls=HelpCommand)
def directory(json: JsonOption = False) -> None:
    """Print the directory of the cache.

    Example: `du -sh $(dpo cache dir)`
    """
    path = str(require_cache_directory())
    if json:
        print_json({"path": path})
    else:
        echo(path)


@cache.command(name="size", cls=HelpCommand)
def size_of(json: JsonOption = False) -> None:
    """Print the size of the cache, and when it was last used.

    Example: `dpo cache size --json`
    """
    cached = entries(require_cache_directory())
    facts: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        of_kind = [entry for entry in cached if entry.kind == kind]
        facts[kind] = {
            "files": len(of_kind),
            "size_bytes": sum(entry.size_bytes for entry in of_kind),
            "last_used": max((entry.used for entry in of_kind), default=None),
        }
    total = sum(entry.size_bytes for entry in cached)
    if json:
        print_json({"path": require_cache_directory(), "size_bytes": total, "kinds": facts})
        return
    console = line_console()
    for kind, fact in facts.items():
        if fact["files"]:
            ago = format_duration(max(0.0, time.time() - fact["last_used"]))
            held = f"{format_count(fact['files'], 'file')}, last used {ago} ago"
            console.print(f"{kind:<10}{format_size(fact['size_bytes']):>9}  {KINDS[kind]}: {held}")
    console.print(f"{'together':<10}{format_size(total):>9}  {require_cache_directory()}")


@cache.command(name="clean", cls=HelpCommand)
def clean_up(dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Empty the cache: the next runs encode their rows and compute their references again.

    Files that were not used for a month are removed automatically. Running training continues.

    Example: `dpo cache clean --dry-run`
    """
    cached = entries(require_cache_directory())
    gone = cached if dry_run else remove(cached)
    total = sum(entry.size_bytes for entry in gone)
    if json:
        print_json({"dry_run": dry_run, "freed_bytes": total, "files": len(gone)})
    else:
        verb = "this would free" if dry_run else "freed"
        echo(f"{verb} {format_size(total)} in {format_count(len(gone), 'file')}")
    if stuck := [str(entry.path) for entry in cached if entry not in gone]:
        raise DpoError("some files could not be removed", details=stuck)
