"""The project's rules of language, as far as a program can check them.

`STYLE` rules in words: a docstring's first line says in one plain sentence what a thing is or does;
one term has one meaning; text that a user reads contains no word of the list below.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY

PACKAGE = REPOSITORY / "dpo_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "demo/README.md"]
)
PROFILES = sorted((REPOSITORY / "profiles").glob("*.toml"))

BANNED_OPENERS = (
    *("What", "Whether", "How", "Which", "Who", "Where", "Of", "The same", "As", "Such as"),
    *("Everything", "Nobody", "Those", "That", "Its", "From", "Not", "Also"),
)

RIDDLE = re.compile(rf"({'|'.join(BANNED_OPENERS)})\b")

# A term that is replaced, and the one to write.
BANNED_TERMS = {
    r"set aside": "skipped",
    r"told apart": "accuracy; distinguishable",
    r"\blikelier\b": "more likely",
    r"\bthe leader\b": "the main rank",
    r"\bnobody'?s?\b": "an active sentence",
    r"\byardsticks?\b": "evaluation settings",
    r"\bdossiers?\b": "report",
    r"\bby heart\b": "memorized",
    r"reference layout": "padded layout",
    r"reference recipe": "minimind recipe",
    r"\breference scripts?\b": "MiniMind's script",
    r"MiniMind generations?\b": "MiniMind version",
    r"\bgeneration [23]\b": "MiniMind version",
    r"balance loss": "auxiliary loss",
    r"\bbrakes?\b|\bbraking\b": "saturation",
    r"\bunproved\b": "not verified",
    r"\bin the mean\b": "on average",
    r"model\.checkpoint\b": "model.weights",
    r"rejected_rows": "skipped_rows",
    r"\bon_non_finite\b": "nan_policy",
    r"\btokens_per_forward\b(?<!max_tokens_per_forward)": "max_tokens_per_forward",
    r"\baux_tokens\b": "aux_loss_tokens",
    r"\bpath_weights\b": "mixture_weights",
    r"eval\.samples\b": "eval.num_samples",
    r"\btraits?\b": "issue",
    r"\b(no|one|each|this|rank's) cards?\b": "GPU",
    r"\bmeetings?\b": "an exchange between the ranks; a barrier",
    r"\b(tells|(not|can|to) tell)\b": "report, show, distinguish",
    r"\b(all|of|than) group\b": "ranks",
    r"\bbehind (an|every|each|that)\b": "after",
    r"\b(begins?|continues?|follows?|writes?|header|part|text|turns?|words?) behind\b": "after",
}
BRITISH = {
    r"\b(re)?colours?(ed)?\b": "color",
    r"\bbehaviours?\b": "behavior",
    r"\bneighbours?\b": "neighbor",
    r"\bcentre[sd]?\b": "center",
    r"\bfavours?\b": "favor",
    r"\b(memor|recogn|general|normal|quant|initial|serial|summar|random|token|optim|minim|penal)"
    r"is(e|es|ed|ing|ation)\b": "-ize",
}
# The table of renamed keys names the old ones, to tell users about the new ones.
OLD_KEYS_ALLOWED = {PACKAGE / "profile/renames.py"}


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Docstrings of modules, classes and functions, with their line numbers."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def field_docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Strings below a field or a constant, which describe it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            for before, statement in itertools.pairwise(node.body):
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text))) if isinstance(
                        before, ast.Assign | ast.AnnAssign
                    ):
                        yield statement.lineno, text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings(path: Path) -> None:
    """No riddle as an opener; the first line is one sentence on one line."""
    problems = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for line, text in docstrings(tree):
        first, _, rest = text.partition("\n")
        place = f"{path.relative_to(REPOSITORY)}:{line}: {first}"
        if RIDDLE.match(first):
            problems.append(f"{place}  <- opens with a riddle")
        if not first.endswith("."):
            problems.append(f"{place}  <- is no whole sentence that ends with a period")
        if rest and rest.split("\n", 1)[0].strip():
            problems.append(f"{place}  <- needs a blank line after it")
    for line, text in field_docstrings(tree):
        if RIDDLE.match(text):
            first = text.partition("\n")[0]
            problems.append(
                f"{path.relative_to(REPOSITORY)}:{line}: {first}  <- opens with a riddle"
            )
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_variable_is_named_its(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = node.id if isinstance(node, ast.Name) else getattr(node, "arg", None)
        place = f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', '')}"
        assert name not in {"its", "their", "theirs"}, f"{place}: name the variable by its meaning"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_local_name_hides_one_of_the_module(path: Path) -> None:
    """A function that imports `cut` and counts in `cut` needs two readings.

    Parameters of commands are exempt: they are the names of the flags.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    shared = {alias.asname or alias.name for node in tree.body for alias in imported(node)}
    shared |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    problems = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        names = {
            node.id
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        if PACKAGE / "commands" not in path.parents:
            arguments = function.args
            names |= {each.arg for each in (*arguments.args, *arguments.kwonlyargs)}
        problems += [
            f"{path.relative_to(REPOSITORY)}:{function.lineno}: {name!r} in {function.name}()"
            for name in sorted(names & shared)
        ]
    assert not problems, "\n".join(problems)


def imported(statement: ast.stmt) -> list[ast.alias]:
    return statement.names if isinstance(statement, ast.Import | ast.ImportFrom) else []


def violations(text: str, terms: dict[str, str]) -> Iterator[str]:
    for pattern, better in terms.items():
        if found := re.search(pattern, text, re.IGNORECASE):
            yield f"{found.group(0)!r}: write {better!r}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_terms_in_code(path: Path) -> None:
    """Strings, docstrings and comments use each term with one meaning, in American spelling."""
    if path in OLD_KEYS_ALLOWED:
        return
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    problems = [
        f"{path.relative_to(REPOSITORY)}:{number}: {problem}"
        for number, line in lines
        for problem in violations(line, BANNED_TERMS | BRITISH)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", [*PAGES, *PROFILES], ids=lambda path: path.name)
def test_terms_in_pages(path: Path) -> None:
    if path.name == "CHANGELOG.md":  # lists the old names beside the new ones
        return
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    problems = [
        f"{path.relative_to(REPOSITORY)}:{number}: {problem}"
        for number, line in lines
        for problem in violations(line, BANNED_TERMS | BRITISH)
    ]
    assert not problems, "\n".join(problems)
