"""Tests of the project's rules of language, as far as a program can check them.

The first line of a docstring says in one plain sentence what a thing is or does; one term has one
meaning; no text contains a term of the lists below.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.cli import REPOSITORY

PACKAGE = REPOSITORY / "dpo_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [
    path
    for folder in ("benchmarks", "demo", "examples", "tests", "website")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]
PAGES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").glob("*.md"),
        REPOSITORY / "demo/README.md",
        REPOSITORY / "benchmarks/RESULTS.md",
    ]
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
    r"\bfrom which on\b": "the smallest ... at which",
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
# Files that need a banned term, with the reason.
MAY_USE_TERMS = {
    PACKAGE / "profile/renames.py": "names the old keys of a profile beside the new ones",
    REPOSITORY / "benchmarks/harness.py": "a key of the committed harness.json",
    REPOSITORY / "tests/fuzz/targets.py": "the user `nobody`, whose home exists",
    REPOSITORY / "tests/test_style.py": "the lists above",
}


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of modules, classes and functions, with their line numbers."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def field_docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the strings below fields and constants, which describe them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            for before, statement in itertools.pairwise(node.body):
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text))) if isinstance(
                        before, ast.Assign | ast.AnnAssign
                    ):
                        yield statement.lineno, text


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(REPOSITORY)}:{line}"


def test_docstrings() -> None:
    """The first line is one sentence on one line, and does not open with a riddle."""
    problems = []
    for path in [*MODULES, *SCRIPTS]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, text in docstrings(tree):
            first, _, rest = text.partition("\n")
            if RIDDLE.match(first):
                problems.append(f"{place(path, line)}: {first}  <- opens with a riddle")
            if not first.endswith("."):
                problems.append(f"{place(path, line)}: {first}  <- does not end with a period")
            if rest and rest.split("\n", 1)[0].strip():
                problems.append(f"{place(path, line)}: {first}  <- needs a blank line after it")
        for line, text in field_docstrings(tree):
            if RIDDLE.match(text):
                first = text.partition("\n")[0]
                problems.append(f"{place(path, line)}: {first}  <- opens with a riddle")
    assert not problems, "\n".join(problems)


def test_no_variable_is_named_its() -> None:
    """A variable is named by its meaning."""
    problems = []
    for path in [*MODULES, *SCRIPTS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.id if isinstance(node, ast.Name) else getattr(node, "arg", None)
            if name in {"its", "their", "theirs"}:
                problems.append(f"{place(path, getattr(node, 'lineno', 0))}: {name}")
    assert not problems, "\n".join(problems)


def hidden_names(path: Path) -> Iterator[str]:
    """Yield local names that are also names of the module, with their functions.

    Parameters of commands are exempt: they are the names of the flags.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    shared: set[str] = set()
    for statement in tree.body:
        match statement:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                shared |= {alias.asname or alias.name for alias in names}
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                shared.add(name)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        local = {
            node.id
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        if PACKAGE / "commands" not in path.parents:
            local |= {each.arg for each in (*function.args.args, *function.args.kwonlyargs)}
        for name in sorted(local & shared):
            yield f"{place(path, function.lineno)}: {name} in {function.name}()"


def test_no_local_name_hides_one_of_the_module() -> None:
    """A function that imports `cut` and counts in `cut` is hard to read."""
    problems = [line for path in MODULES for line in hidden_names(path)]
    assert not problems, "\n".join(problems)


ERRORS = {"DpoError", "UsageError", "NoSpaceError"}
COMMANDS = ("nvidia-smi ", "dpo ", "this is a bug in dpo")
"""Beginnings of a remedy that stay in lower case."""


def remedies(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the beginnings of the remedies of errors and findings, with their lines."""
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[_, remedy, *_]) if name in ERRORS:
                pass
            case ast.Call(func=ast.Attribute(attr="warn" | "error"), args=[_, _, _, remedy]):
                pass
            case _:
                continue
        if isinstance(remedy, ast.Name):
            remedy = constants.get(remedy.id, remedy)
        if isinstance(remedy, ast.JoinedStr):
            remedy = remedy.values[0]
        if isinstance(remedy, ast.Constant) and isinstance(remedy.value, str):
            yield remedy.lineno, remedy.value


def test_remedies_are_sentences() -> None:
    """A remedy begins with a capital letter, as in `help: Set data.max_seq_len to 512`."""
    problems, count = [], 0
    for path in MODULES:
        for line, text in remedies(ast.parse(path.read_text(encoding="utf-8"))):
            count += 1
            if text[:1].islower() and not text.startswith(COMMANDS):
                problems.append(f"{place(path, line)}: {text}")
    assert count > 300
    assert not problems, "\n".join(problems)


def violations(path: Path) -> Iterator[str]:
    """Yield the banned terms and British spellings of a file, with their lines."""
    text = path.read_text(encoding="utf-8")
    for pattern, better in (BANNED_TERMS | BRITISH).items():
        for found in re.finditer(pattern, text, re.IGNORECASE):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{place(path, line)}: {found.group(0)!r}: write {better!r}"


def test_terms_in_code() -> None:
    """Strings, docstrings and comments use each term with one meaning, in American spelling."""
    paths = [path for path in [*MODULES, *SCRIPTS] if path not in MAY_USE_TERMS]
    problems = [line for path in paths for line in violations(path)]
    assert not problems, "\n".join(problems)


def test_terms_in_pages() -> None:
    # The change log lists the old names beside the new ones.
    pages = [path for path in [*PAGES, *PROFILES] if path.name != "CHANGELOG.md"]
    problems = [line for path in pages for line in violations(path)]
    assert not problems, "\n".join(problems)
