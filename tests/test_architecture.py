"""Rules of the architecture: allowed imports, and modules that must stay light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

from tests.support.cli import HANG_SECONDS, REPOSITORY, environment

PACKAGE = REPOSITORY / "dpo_cli"
HEAVY = ("torch", "transformers", "safetensors", "tokenizers")

# From the bottom up; a package may import packages of lower levels, and itself.
FLOORS = [
    {
        "errors",
        "extras",
        "findings",
        "formatting",
        "intervals",
        "learning_rate",
        "printable",
        "shell",
        "streams",
        "__init__",
    },
    {"machine"},
    {"files"},
    {"hub", "integrity", "paired", "parent_death", "repetition", "signatures"},
    {"data", "profile"},
    {"compute", "objective", "run"},
    {"models", "distributed", "alerts"},
    {"training"},
    {"inference"},
    {"export"},
    {"ui", "checks"},
    {"api"},
    {"commands"},
    {"app"},
    {"__main__"},
]
LIGHT = (
    *("profile", "run", "ui", "alerts", "api", "commands", "app"),
    *(
        "errors",
        "extras",
        "files",
        "findings",
        "formatting",
        "hub",
        "integrity",
        "intervals",
        "learning_rate",
        "paired",
        "signatures",
    ),
    *("machine", "parent_death", "printable", "repetition", "shell", "streams"),
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return the package or module right below dpo_cli."""
    return module.split(".")[1] if "." in module else "__init__"


@functools.cache
def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, top_level_only: bool) -> set[str]:
    """Return the modules that a file imports, as dotted names, except under TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and top_level_only:
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(syntax_tree(path))
    return found


def floor(part: str) -> int:
    return next(level for level, parts in enumerate(FLOORS) if part in parts)


def test_imports_run_downwards_only() -> None:
    upwards = []
    for path in modules():
        own = part_of(name_of(path))
        for imported in imports(path, top_level_only=False):
            part = part_of(imported)
            if not imported.startswith("dpo_cli.") or part == own:
                continue
            if any(part in parts for parts in FLOORS) and floor(part) >= floor(own):
                upwards.append(f"{name_of(path)} imports {imported}")
    assert not upwards


def all_imports(path: Path) -> set[str]:
    """Return all modules that a file imports, also in functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_there_are_no_circles() -> None:
    """There is no import cycle, even through imports in functions or under TYPE_CHECKING."""
    known = {name_of(path) for path in modules()}
    graph = {
        name_of(path): (all_imports(path) & known) - {name_of(path), "dpo_cli"}
        for path in modules()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_terminal_side_loads_no_torch() -> None:
    heavy = [
        f"{name_of(path)} imports {imported}"
        for path in modules()
        if part_of(name_of(path)) in LIGHT
        for imported in imports(path, top_level_only=True)
        if imported.split(".")[0] in HEAVY
    ]
    assert not heavy


def test_dpo_data_loads_no_models() -> None:
    """The models of transformers take three seconds to import; `dpo data` shows a row in two."""
    paths = {name_of(path): path for path in modules()}
    loaded, found = ["dpo_cli.checks.data_browser"], set()
    while loaded:
        found.add(loaded.pop())
        known = {name for each in found for name in imports(paths[each], top_level_only=True)}
        loaded = sorted((known & set(paths)) - found - {"dpo_cli"})
    assert "dpo_cli.data.tokens" in found
    assert not {name for name in found if name.startswith("dpo_cli.models.")}


def test_the_mathematics_depends_on_tensors_only() -> None:
    for path in (PACKAGE / "objective").glob("*.py"):
        roots = {name.split(".")[0] for name in imports(path, top_level_only=False)}
        allowed = {"__future__", "collections", "dataclasses", "math", "typing", "torch"}
        assert roots <= allowed | {"dpo_cli"}


def test_paths_with_a_tilde_are_expanded_in_one_way() -> None:
    """Path.expanduser raises for an unknown user; `files.expanded` leaves the path as it is."""
    assert not [
        name_of(path) for path in modules() if ".expanduser()" in path.read_text(encoding="utf-8")
    ]


def test_one_module_reads_foreign_weights() -> None:
    """Only `weight_files` unpickles, because it reads weights from other programs."""
    for path in modules():
        text = path.read_text(encoding="utf-8")
        if "torch.load(" in text:
            assert name_of(path) == "dpo_cli.models.weight_files"
            assert "weights_only=True" in text
        assert "weights_only=False" not in text
        assert "trust_remote_code=True" not in text
        assert "import pickle" not in text or name_of(path) == "dpo_cli.models.weight_files"


def files_of_tests() -> list[Path]:
    return sorted((REPOSITORY / "tests").rglob("*.py"))


def test_no_test_file_imports_another() -> None:
    """Shared helpers are in tests/support, or in the conftest of the same folder."""
    wrong = []
    for path in files_of_tests():
        own_conftest = ".".join((*path.relative_to(REPOSITORY).parent.parts, "conftest"))
        for imported in all_imports(path):
            parts = imported.split(".")
            is_test = parts[0] == "tests" and any(part.startswith("test_") for part in parts[:3])
            is_foreign = "conftest" in parts and not imported.startswith(own_conftest)
            if is_test or (parts[0] == "tests" and is_foreign):
                wrong.append(f"{path.relative_to(REPOSITORY)} imports {imported}")
    assert not wrong


def test_help_loads_neither_torch_nor_the_schema() -> None:
    code = (
        "import sys; from dpo_cli.app import main; main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'dpo_cli.profile.schema'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout


def test_modules_are_short() -> None:
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in modules()}
    assert not {name: count for name, count in lines.items() if count > 400}


def test_the_training_core_is_small() -> None:
    assert len(list((PACKAGE / "training").glob("*.py"))) <= 22
