"""`dpo cache`: what is kept between runs to save time."""

from __future__ import annotations

import time
from json import dumps
from typing import Any

import typer

from dpo_cli.commands.console import plain_console
from dpo_cli.commands.options import DryRunOption, JsonOption
from dpo_cli.errors import DpoError
from dpo_cli.formatting import format_count, format_duration, format_size
from dpo_cli.run.caches import KINDS, entries, remove, require_cache_directory

cache = typer.Typer(name="cache", no_args_is_help=True, add_completion=False)


@cache.callback()
def about() -> None:
    """What is kept between runs to save time: encoded rows, log-probs of references.

    All of it is found by content, checked before it is believed, and made again where it is gone.
    DPO_CACHE_DIR says where it lies, else XDG_CACHE_HOME, else ~/.cache/dpo.

    Example: `dpo cache size`
    """


@cache.command(name="dir")
def directory(json: JsonOption = False) -> None:
    """Print where the cache lies.

    Example: `du -sh $(dpo cache dir)`
    """
    path = str(require_cache_directory())
    typer.echo(dumps({"path": path}) if json else path)


@cache.command(name="size")
def size_of(json: JsonOption = False) -> None:
    """Say what the cache holds, and when it was last used.

    Example: `dpo cache size --json`
    """
    found = entries(require_cache_directory())
    facts: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        its = [entry for entry in found if entry.kind == kind]
        facts[kind] = {
            "files": len(its),
            "size_bytes": sum(entry.size_bytes for entry in its),
            "last_used": max((entry.used for entry in its), default=None),
        }
    total = sum(entry.size_bytes for entry in found)
    if json:
        told = {"path": str(require_cache_directory()), "size_bytes": total, "kinds": facts}
        typer.echo(dumps(told, indent=2))
        return
    console = plain_console()
    for kind, fact in facts.items():
        if fact["files"]:
            ago = format_duration(max(0.0, time.time() - fact["last_used"]))
            held = f"{format_count(fact['files'], 'file')}, last used {ago} ago"
            console.print(f"{kind:<10}{format_size(fact['size_bytes']):>9}  {KINDS[kind]}: {held}")
    console.print(f"{'together':<10}{format_size(total):>9}  {require_cache_directory()}")


@cache.command(name="clean")
def clean_up(dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Empty the cache: the next runs encode their rows and compute their references again.

    What nobody used for a month goes by itself. Runs that train are not disturbed.

    Example: `dpo cache clean --dry-run`
    """
    found = entries(require_cache_directory())
    gone = found if dry_run else remove(found)
    total = sum(entry.size_bytes for entry in gone)
    if json:
        told = {"dry_run": dry_run, "freed_bytes": total, "files": len(gone)}
        typer.echo(dumps(told, indent=2))
    else:
        verb = "this would free" if dry_run else "freed"
        typer.echo(f"{verb} {format_size(total)} in {format_count(len(gone), 'file')}")
    if stuck := [str(entry.path) for entry in found if entry not in gone]:
        raise DpoError("not everything could be removed", details=stuck)
