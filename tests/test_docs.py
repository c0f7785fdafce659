"""The README says what is so: its walk-through is run and compared, its commands and links exist."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scen_cli.cli import app, data, study
from scen_cli.data.suites import load_suite
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.model.base import DEMO
from tests.conftest import edit_all

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()

GROUPS = {"data": data.app, "study": study.app}


def squeezed(text: str) -> str:
    return " ".join(text.split())


def walk_through() -> list[tuple[list[str], list[str]]]:
    """(arguments, lines of output) of each `$ scen ...` in the README's console blocks."""
    steps: list[tuple[list[str], list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ scen "):
                steps.append((shlex.split(line.removeprefix("$ scen ")), []))
            else:
                steps[-1][1].append(line)
    return steps


def test_the_walk_through_prints_what_the_readme_shows(scen, tmp_path, monkeypatch):
    shutil.copytree(DEMO, tmp_path / "my-llama")
    for file in (ROOT / "examples").glob("*.jsonl"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    steps = walk_through()
    assert [arguments[0] for arguments, _ in steps] == "init edit ask eval revert verify export".split()
    for arguments, shown in steps:
        printed = [squeezed(line) for line in scen(*arguments).stdout.splitlines()]
        for line in shown:
            assert squeezed(line) in printed, f"`scen {' '.join(arguments)}` does not print: {line}"


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "['Seoul']\n"


def test_every_command_is_in_the_table_of_commands():
    for command in app.registered_commands:
        assert f"`scen {command.name}`" in README or command.name in GROUPS
    for name, group in GROUPS.items():
        for command in group.registered_commands:
            assert f"`scen {name} {command.name}`" in README or f"`{command.name}`" in README


def test_every_option_named_in_the_readme_exists(scen):
    known = set()
    commands = [[command.name] for command in app.registered_commands if command.name not in GROUPS]
    for name, group in GROUPS.items():
        commands += [[name, command.name] for command in group.registered_commands]
    for command in commands:
        text = scen(*command, "--help").stdout
        assert "Example: scen" in " ".join(text.split())
        known |= set(re.findall(r"--[a-z][a-z-]*", text))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) - {"--help"}
    cut_by_narrow_help = {option for option in named if any(option.startswith(shown) for shown in known)}
    assert named <= known | cut_by_narrow_help


def test_the_table_of_recipes_has_what_the_default_gives(make_editor):
    """Within one in a hundred: another processor rounds otherwise, and a near tie may fall otherwise. (The whole table
    is `python -m benchmarks.recipes`.)"""
    cell = r"[\d.]+ % \((\d+)/(\d+)\)"
    rows = re.findall(rf"^\| `([a-z-]+)` \| {cell} \| {cell} \| {cell} \| {cell} \|$", README, re.MULTILINE)
    assert [row[0] for row in rows] == ["closed-form", "joint", "key", "paper"]
    suite, (recipe, *counts) = load_suite("demo"), rows[0]
    editor = make_editor(recipe)
    edit_all(editor, suite.edits[:100])
    figures = evaluate(editor, suite, quick=True).figures
    shares = [figures[name].patched for name in ("reliability", "generality", "locality")]
    shares.append(figures["locality"].fired)
    for share, right, total in zip(shares, counts[::2], counts[1::2], strict=True):
        assert share.total == int(total)
        assert abs(share.right - int(right)) <= share.total / 100


def test_the_tables_of_costs_are_what_the_benchmarks_wrote():
    """`python -m benchmarks.page` makes them of `benchmarks/speed/*.json`."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.page import PAGES, filled

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert page.parent.name == "docs" or "<!-- table: edit_speed -->\n\n|" in text
        assert text == filled(text)


def test_the_tables_of_studies_are_what_the_studies_wrote():
    """`benchmarks/studies.sh` writes the files; the README shows them."""
    folder = ROOT / "benchmarks" / "studies"

    def rows(name):
        with (folder / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    roles = ("reliability", "generality", "locality")
    line = r"^\| (?:expert at|neuron:|two edits|four edits).*?\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| [\d. /]+ \|$"
    shown = re.findall(line, README, re.MULTILINE)
    tables = rows("table3")[:5] + rows("table4")[1:]
    measured = [tuple(f"{100 * float(row[role]):.1f}" for role in roles) for row in tables]
    assert shown == measured

    share = r"([\d.]+) \((\d+)/\d+\)"
    line = rf"^\| (ZsRE|CounterFact) \| `([\w-]+)` \| {share} \| {share} \| ([\d.]+) \| {share} \|$"
    real = re.findall(line, README, re.MULTILINE)
    assert len(real) == 9
    columns = ("reliability", "generality", "generality_given_expert", "locality")
    for suite, recipe, reliability, right, generality, _right, given, locality, _kept in real:
        [row] = rows(f"{suite.lower()}-{recipe}")
        assert [reliability, generality, given, locality] == [f"{100 * float(row[name]):.1f}" for name in columns]
        assert int(right) == round(float(row["reliability"]) * int(row["reliability_of"]))


def test_the_table_of_routing_is_what_the_bench_wrote():
    """`benchmarks/routing.sh` writes the files; the README shows some of them."""
    names = {
        "demo": "demo",
        "demo, tuned on ZsRE": "zsre",
        "demo, tuned on CounterFact": "counterfact",
        "the same, `key_pooling=mean`": "counterfact",
    }
    lines = re.findall(rf"^\| ({'|'.join(map(re.escape, names))}) \| (\d+) \| (.*) \|$", README, re.MULTILINE)
    assert len(lines) == 5
    for base, edits, cells in lines:
        file = f"{names[base]}-{edits}" if edits == "10000" else names[base]
        rows = json.loads((ROOT / "benchmarks" / "routing" / f"{file}.json").read_text())
        share = {r["router"]: 100 * r["at 1% same_kind"]["rephrases"] for r in rows if r["edits"] == int(edits)}
        pool = "/mean" if "mean" in base else ""
        wanted = [f"key (cosine){pool}", f"closed-form{pool}", f"closed-form, second look{pool}"]
        papers = [f"{found:.1f}" for name, found in share.items() if name.startswith("paper") and not pool] or ["-"]
        assert cells.split(" | ") == papers + [f"{share[name]:.1f}" for name in wanted]


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_promise_is_held_to_account_by_tests_that_there_are():
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    promises = re.findall(r"^\| \*\*(.+?)\*\* \|(.*)\|$", page, flags=re.MULTILINE)
    assert len(promises) == 7
    for promise, row in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?(?:::(\w+))?`", row)
        assert named, promise
        for file, *names in named:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert all(re.search(rf"(def|class) {name}\b", source) for name in names if name), (file, names)
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link


def test_figures_of_the_training_script_are_those_in_the_changelog():
    recorded = json.loads((DEMO / "training.json").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"{recorded['parameters']:,} parameters" in changelog
    assert f"({recorded['seconds']} s," in changelog


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [example, str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    assert "Kenya" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["lint", "format", "types"],
)
def test_the_code_is_clean(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
