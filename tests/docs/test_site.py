"""The pages in `docs/`: what they name exists, what exists is named, links resolve, and the site builds."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest

import scen_cli
from scen_cli.project.schema import new_ledger
from scen_cli.recipe import Recipe
from tests.docs.pages import (
    DOCS,
    PAGES,
    README,
    ROOT,
    SITE,
    command_lines,
    commands,
    headings,
    name_of,
    options,
    read,
)

# Options of other programs that the pages name: pip, pytest, vLLM, curl, the benchmarks.
FOREIGN = set(
    "--enable-lora --max-lora-rank --max-loras --max-cpu-loras --lora-target-modules --served-model-name "
    "--base --device --dtype --rows --shape --peak --locust --json --no-deps --version --layers --encoder".split()
)
COMMANDS = commands()
reference = runpy.run_path(str(DOCS / "generate_reference.py"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", read(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in headings(read(target)), link


@pytest.mark.parametrize("page", [README, *SITE], ids=name_of)
def test_commands_and_their_options_exist(page):
    for line in command_lines(read(page)):
        try:
            words = shlex.split(line)[1:]
        except ValueError:  # a code span that cuts a quotation
            words = line.split()[1:]
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        if name in ("data", "study") and len(words) == 1:
            continue
        assert name in COMMANDS, line
        used = {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}
        assert used <= options(COMMANDS[name]), line


@pytest.mark.parametrize("page", [README, *SITE], ids=name_of)
def test_every_named_option_exists(page):
    known = set().union(*map(options, COMMANDS.values()))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", read(page)))
    assert named - FOREIGN <= known


@pytest.mark.parametrize("page", [README, *SITE], ids=name_of)
def test_every_named_file_exists(page):
    pattern = r"(?<![\w/.-])((?:scen_cli|tests|benchmarks|examples)/[\w./-]*\w)(?![\w*])"
    prose = re.sub(r"\]\([^)]+\)|WORK/\S+", "", read(page))  # links have a test of their own
    prose = re.sub(r"```\{toctree\}.*?```", "", prose, flags=re.DOTALL)
    for name in re.findall(pattern, prose):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_stands_in_the_reference(name):
    assert "Example: scen" in " ".join((COMMANDS[name].help or "").split())
    page = reference["fill"](read(DOCS / "reference" / "commands.md"))
    assert f"# `scen {name}`\n" in page
    section = page.partition(f"# `scen {name}`\n")[2].partition("\n### ")[0]
    missing = [option for option in options(COMMANDS[name]) - {"-h"} if option not in section]
    assert missing == []


def test_every_public_name_stands_in_the_reference():
    page = read(DOCS / "reference" / "api.md")
    for name in set(scen_cli.__all__) - {"__version__"}:
        assert re.search(rf"^\.\. auto\w+:: scen_cli\.{name}$", page, re.MULTILINE), name
    assert ".. automodule:: scen_cli.errors" in page


def test_every_setting_stands_in_the_reference():
    page = reference["fill"](read(DOCS / "reference" / "settings.md"))
    for name, field in Recipe.model_fields.items():
        assert name == "name" or (f"| `{name}` |" in page and (field.description or "") in page), name


def test_every_exit_code_stands_in_the_reference():
    page = read(DOCS / "reference" / "commands.md")
    codes = re.findall(r"exit_code = (\d+)", read(ROOT / "scen_cli" / "errors.py"))
    assert codes
    for code in codes:
        assert f"| {code} |" in page


def test_every_column_of_the_ledger_stands_in_the_reference():
    page = read(DOCS / "reference" / "formats.md")
    tables = [table for table in new_ledger().tables if not table.name.startswith("_")]
    columns = {column for table in tables for column in table.columns_dict}
    assert len(columns) > 30
    assert [name for name in sorted(columns - {"id"}) if f"`{name}`" not in page] == []


def test_every_environment_variable_stands_in_the_reference():
    source = "\n".join(read(file) for file in (ROOT / "scen_cli").rglob("*.py"))
    used = set(re.findall(r"[\"'](SCEN_[A-Z_]+)[\"']", source))
    page = read(DOCS / "reference" / "commands.md")
    assert [name for name in sorted(used) if f"`{name}`" not in page] == []


def test_every_promise_names_tests_that_exist():
    promises = re.findall(r"^\| \*\*(.+?)\*\* \|(.*)\|$", read(DOCS / "promises.md"), flags=re.MULTILINE)
    assert len(promises) == 7
    for promise, row in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?(?:::(\w+))?`", row)
        assert named, promise
        for file, *names in named:
            source = read(ROOT / file)
            assert all(re.search(rf"(def|class) {name}\b", source) for name in names if name), (file, names)


def test_every_package_stands_in_the_architecture():
    page = read(DOCS / "architecture.md")
    for folder in sorted((ROOT / "scen_cli").iterdir()):
        if (folder / "__init__.py").exists():
            row = re.search(rf"^\| `{folder.name}/` \|.*\| (.*) \|$", page, re.MULTILINE)
            assert row is not None, folder.name
            for file in re.findall(r"`([\w.]+)`", row[1]):
                assert (folder / file).exists(), (folder.name, file)


def test_tables_of_the_toy_base_say_so():
    """Every page with measured tables says which base they are of."""
    for page in SITE:
        if "<!-- table: " in read(page):
            base = (
                "smollm2-135m-instruct, dequantised from q4_1"
                if page.name == "real.md"
                else "toy base, 1.2 m parameters"
            )
            assert base in " ".join(read(page).lower().split()), page.name


@pytest.mark.slow
@pytest.mark.skipif(find_spec("furo") is None, reason="the extra `docs` (Sphinx, MyST, furo) is not installed")
def test_site_builds_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Editor.edit" in read(tmp_path / "site" / "reference" / "api.html")
