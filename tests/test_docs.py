"""The pages name only files, tests and links that exist."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.profile.losses import LOSSES
from dpo_cli.profile.schema import KEYS, TABLES
from tests.support.cli import REPOSITORY
from tests.support.command_tree import command_tree
from tests.support.documented import PAGES, dpo_words, shell_lines

TESTS = {
    path: path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py")
}
ALL_TESTS = "\n".join(TESTS.values())


def page_id(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_anchors_are_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", text):
        if target.startswith("http"):
            continue
        other = (page.parent / target).read_text(encoding="utf-8") if target else text
        headings = re.findall(r"^#+ (.+)$", other, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in anchors, f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_tests_and_files_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # lists old names beside the new ones
        return
    for quoted in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        if match := re.fullmatch(r"(?:[\w/]+\.py::)?(test_\w+)", quoted):
            assert f"def {match.group(1)}(" in ALL_TESTS, f"{page.name} names {quoted}"
        if re.fullmatch(r"(tests|dpo_cli|benchmarks|examples|demo|profiles)/[\w/]+\.\w+", quoted):
            assert (REPOSITORY / quoted).exists(), f"{page.name} names {quoted}"
        if re.fullmatch(r"[a-z_]+/[a-z_]+\.py", quoted) and not quoted.startswith(
            ("tests/", "benchm")
        ):
            here = [REPOSITORY / "dpo_cli" / quoted, REPOSITORY / quoted]
            assert any(path.exists() for path in here), f"{page.name} names {quoted}"


def test_every_loss_has_a_row() -> None:
    text = (REPOSITORY / "docs/losses.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|", text, re.MULTILINE)
    for name, needs in LOSSES.items():
        inputs = {
            "reference": needs.reference,
            "mean": needs.mean,
            "whole batch": needs.whole_batch,
        }
        assert (name, ", ".join(text for text, is_needed in inputs.items() if is_needed)) in rows


@pytest.mark.parametrize(
    ("file", "sentence", "condition"),
    [
        ("docs/losses.md", r"^\| `f_divergence_type` .*$", "divergence"),
        (
            "docs/losses.md",
            r"With ([^.]*), alone or in a mixture, micro-batches stay",
            "whole_batch",
        ),
        ("docs/losses.md", r"refused with (`aot`.*) \|", "whole_batch"),
        ("docs/losses.md", r"With ([^.]*), alone or together, no reference", "no reference"),
        ("docs/losses.md", r"With ([^.]*) the first loss depends", "no known_start"),
        ("docs/migrating.md", r"for the losses that need one \((.*)\)\.", "mean"),
        ("dpo_cli/profile/objective.py", r"\(only for ([^)]*)\)\. Default: 0", "smoothing"),
    ],
)
def test_lists_of_losses_are_complete(file: str, sentence: str, condition: str) -> None:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    (match,) = re.finditer(sentence, text, re.MULTILINE)
    named = set(re.findall(r"[`\"](\w+)[`\"]", match.group())) & LOSSES.keys()
    field = condition.removeprefix("no ")
    is_wanted = field == condition
    assert named == {name for name, needs in LOSSES.items() if getattr(needs, field) == is_wanted}


@pytest.fixture(scope="module")
def tree() -> Any:
    return command_tree()


def named_command(tree: Any, words: list[str]) -> Any:
    """Remove the first words that name a command, and return the command."""
    command = tree
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    return command


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_command_lines_are_valid(page: Path, tree: Any) -> None:
    """Each command line parses, and each --set names a key of the profile."""
    for line in shell_lines(page):
        for words in dpo_words(line):
            if words == ["--help"]:
                continue
            command = named_command(tree, words)
            assert not hasattr(command, "commands"), line
            command.make_context("dpo", list(words))
            for option, value in itertools.pairwise(words):
                if option in ("--set", "--grid"):
                    assert value.split("=")[0] in KEYS, line


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_and_options_in_the_text_exist(page: Path, tree: Any) -> None:
    if page.name == "CHANGELOG.md":  # lists old names beside the new ones
        return
    for span in re.findall(r"`dpo ([a-z][^`]*)`", page.read_text(encoding="utf-8")):
        words = span.split(" -- ")[0].split()  # the rest goes to torchrun
        command = named_command(tree, words)
        assert command is not tree or span == "COMMAND --help", f"{page.name} names dpo {span}"
        known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= known | {"--help", "--"}, f"{page.name} names dpo {span}"


NOT_KEYS = {"model.safetensors", "track.json", "track.log", "dpo.train", "dpo.DpoError"}
"""Files, and names of the API, that look like keys."""


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_keys_on_the_pages_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # lists old names beside the new ones
        return
    for key in re.findall(r"`([a-z]+\.\w+)(?: = [^`]*)?`", page.read_text(encoding="utf-8")):
        if key.split(".")[0] in TABLES and key not in NOT_KEYS:
            assert key in KEYS, f"{page.name} names {key}"


def test_the_arguments_of_minimind_have_rows() -> None:
    """The arguments that users of version 3 need most are in the table, with the equivalent key."""
    page = (REPOSITORY / "docs/minimind.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (`--.+?) \| (.+) \|$", page, re.MULTILINE))
    text = {name: key for names, key in rows.items() for name in re.findall(r"`(--\w+)`", names)}
    for argument, key in {
        "--save_weight": "export.prefix",
        "--save_dir": "model.out_dir",
        "--from_weight": "model.weights",
        "--use_compile": "train.compile",
        "--use_wandb": "track.use_swanlab",
    }.items():
        assert f"`{key}`" in text[argument], argument


def test_extras_of_the_pages_exist() -> None:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"'\.\[(\w+)\]'", text)) <= set(extras), page.name
        assert "dpo-cli[" not in text, f"{page.name}: no index has that package"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))
        named += [line.split()[1] for line in shell_lines(page) if line.startswith("make ")]
        assert set(named) <= targets, page.name


def test_scripts_on_the_pages_exist_and_have_their_options() -> None:
    found = 0
    for page in PAGES:
        for line in shell_lines(page):
            words = line.split()
            if words[0] == "python" and words[1].startswith(("benchmarks/", "examples/")):
                text = (REPOSITORY / words[1]).read_text(encoding="utf-8")
                options = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
                assert not [each for each in options if f'"{each}"' not in text], line
                found += 1
    assert found > 5


def test_profiles_on_the_pages_are_valid() -> None:
    """Each has keys of the schema, with values that it accepts."""
    required: dict[str, Any] = {"data": {"data_path": "pairs.jsonl"}}
    found = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            for table, values in tomllib.loads(block).items():
                if table != "extends":
                    TABLES[table].model_validate({**required.get(table, {}), **values})
                    found += 1
    assert found > 10


def test_losses_by_margin() -> None:
    """The table of flat-loss.md: -log sigmoid(beta * margin * tokens)."""
    page = (REPOSITORY / "docs/flat-loss.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\S*) \| (\d\S*) \| (\d\S*) \| (\d\S*) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for margin, *losses in rows:
        scales = (0.1, 5, 0.1 * 200)
        assert losses == [f"{math.log1p(math.exp(-s * float(margin))):.4f}" for s in scales]
