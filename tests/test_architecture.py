"""The structure of the code: which package may import which, and what a file may be called."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scen_cli"

# From the bottom up. A package imports only packages that stand before it.
ORDER = (
    *("_version", "errors", "recipe", "demo", "data", "model", "project", "experts", "neurons", "editing"),
    *("evaluation", "report", "export", "baselines", "serving", "studies", "cli"),
)


def imports(file: Path) -> set[str]:
    """The modules of scen_cli that a file imports, as dotted names without `scen_cli.`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scen_cli."):
            module = str(node.module).removeprefix("scen_cli.")
            for alias in node.names:
                is_module = (PACKAGE / module.replace(".", "/") / f"{alias.name}.py").exists()
                found.add(f"{module}.{alias.name}" if is_module else module)
    return found


def package_of(module: str) -> str:
    return module.split(".")[0]


@pytest.fixture(scope="module")
def modules() -> dict[str, set[str]]:
    files = [file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or not file.name.startswith("__")]
    names = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in files}
    return {name: imports(file) for name, file in names.items()}


def test_packages_import_only_packages_below_them(modules):
    wrong = [
        f"{module} imports {imported}"
        for module, found in modules.items()
        for imported in found
        if ORDER.index(package_of(imported)) > ORDER.index(package_of(module))
    ]
    assert wrong == []


def test_project_knows_no_models_and_tensor_code_no_files(modules):
    for module, found in modules.items():
        packages = {package_of(imported) for imported in found}
        if package_of(module) == "project":
            assert not packages & {"model", "experts", "neurons"}, module
        if package_of(module) in ("model", "experts"):
            assert "project" not in packages, module


def test_at_most_six_modules_at_the_top_level():
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_a_file_name_has_one_meaning():
    counts = Counter(file.name for file in PACKAGE.rglob("*.py") if file.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []


def test_files_and_functions_are_short():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.parent.name != "demo":
            assert text.count("\n") <= 320, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and file.parent.name not in ("cli", "demo"):
                body = node.end_lineno - node.body[0].lineno + 1
                assert body <= 70, f"{file}: {node.name} has {body} lines"
