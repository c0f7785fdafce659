"""The README: its commands and its Python run and print what it shows; its table names every command."""

from __future__ import annotations

import re
import shlex
import shutil

from scen_cli.model.known_bases import DEMO
from tests.docs.pages import README, ROOT, commands, read

TEXT = read(README)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def walk_through() -> list[tuple[list[str], list[str]]]:
    """(arguments, lines of output) of each `$ scen ...` in the README's console blocks."""
    steps: list[tuple[list[str], list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", TEXT, flags=re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ scen "):
                steps.append((shlex.split(line.removeprefix("$ scen ")), []))
            else:
                steps[-1][1].append(line)
    return steps


def taste() -> list[tuple[list[str], list[str]]]:
    """(arguments, lines of output) of each `$ scen ...` in the README's first block."""
    block = re.search(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)
    assert block is not None
    parts = block[1].strip().split("$ scen ")[1:]
    return [(shlex.split(part.splitlines()[0]), part.splitlines()[1:]) for part in parts]


def without_seconds(line: str) -> str:
    return re.sub(r"\(\d+\.\d+ s\)", "(SECONDS)", squeezed(line))


def check(scen, steps) -> None:
    """Run each command; every line that the README shows must be among the printed lines."""
    for arguments, shown in steps:
        result = scen(*arguments)
        printed = [without_seconds(line) for line in (result.stdout + result.stderr).splitlines()]
        for line in shown:
            assert without_seconds(line) in printed, f"`scen {' '.join(arguments)}` does not print: {line}"


def test_readme_is_at_most_180_lines():
    assert len(TEXT.splitlines()) <= 180


def test_walk_through_prints_what_the_readme_shows(scen, tmp_path, monkeypatch):
    shutil.copytree(DEMO, tmp_path / "my-llama")
    for file in (ROOT / "examples").glob("*.jsonl"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    steps = walk_through()
    assert [arguments[0] for arguments, _ in steps] == "init edit ask eval revert verify export".split()
    check(scen, steps)


def test_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "['Seoul']\n"


def test_marked_commands_are_machine_readable():
    """`.ci/run` takes the test command from the README."""
    for mark in ("demo command", "test command"):
        block = re.search(rf"<!-- {mark} -->\n```bash\n(python3 .*)\n```", TEXT)
        assert block is not None, mark
    assert "-e '.[dev]' && .venv/bin/python -m pytest -n 2\n" in TEXT


def test_table_names_every_command():
    table = "\n".join(line for line in TEXT.splitlines() if line.startswith("| `scen "))
    for name in commands():
        group, _, command = name.partition(" ")
        shown = f"`scen {name}`" in table
        listed = bool(command) and re.search(rf"^\| `scen {group}`.*`{command}`", table, re.MULTILINE)
        assert shown or listed, f"scen {name}"
