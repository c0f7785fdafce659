"""Size and imports of the source of one or more checkouts: `python -m benchmarks.structure [FOLDER ...]`

Code lines are those with a token of code: no blank lines, comments or docstrings. An arrow is an import from one
package (or one module at the top) to another.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> None:
    found = [(folder, measured(Path(folder))) for folder in sys.argv[1:] or ["."]]
    for name in found[0][1]:
        print(f"{name:28}", *(f"{figures[name]!s:>28}" for _folder, figures in found))


def measured(checkout: Path) -> dict[str, object]:
    """The figures of one checkout."""
    root = checkout / "scen_cli"
    texts = {file.relative_to(root): file.read_text(encoding="utf-8") for file in sorted(root.rglob("*.py"))}
    arrows: dict[str, set[str]] = {}
    for path, text in texts.items():
        arrows.setdefault(_package(path.parts[0]), set()).update(imported(text) - {_package(path.parts[0])})
    longest, function = max(pair for path, text in texts.items() for pair in lengths(path, text))
    return {
        "lines": sum(text.count("\n") for text in texts.values()),
        "code lines": sum(map(code_lines, texts.values())),
        "files": len(texts),
        "modules at the top level": sum(len(path.parts) == 1 for path in texts),
        "arrows between packages": sum(map(len, arrows.values())),
        "packages in a cycle": sum(package in reached(arrows, package) for package in arrows),
        "longest function": longest,
        "which is": function,
        "lines of the README": (checkout / "README.md").read_text(encoding="utf-8").count("\n"),
    }


def code_lines(text: str) -> int:
    """Lines with a token of code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in NO_CODE]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - docstrings)


def lengths(path: Path, text: str) -> list[tuple[int, str]]:
    """(lines of the body, name) of each function."""
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [((f.end_lineno or 0) - f.body[0].lineno + 1, f"{path}:{f.name}") for f in functions]


def imported(text: str) -> set[str]:
    """The packages, or modules at the top, that a file imports."""
    modules = [node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[1] for module in modules if module.startswith("scen_cli.")}


def reached(arrows: dict[str, set[str]], start: str) -> set[str]:
    """All that can be reached from a package."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = arrows.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _package(name: str) -> str:
    return name.removesuffix(".py")


if __name__ == "__main__":
    main()
