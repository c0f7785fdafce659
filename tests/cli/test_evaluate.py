"""`scen eval`."""

from __future__ import annotations

import json
import re

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.project.project import Project
from tests.cli.records import RECORDS, lines


def test_figures_are_printed_and_recorded(scen, edited_at, tmp_path):
    (tmp_path / "mine.jsonl").write_text(lines(*demo_edits()[:40]))
    result = scen("eval", "--suite", tmp_path / "mine.jsonl", *edited_at)
    assert "Reliability  100.0 % (40/40;" in result.stdout
    assert "teacher-forced token accuracy (not generation)" in result.stdout
    rows = list(Project(edited_at[1]).ledger.db["evaluations"].rows)
    assert [row["suite"] for row in rows] == ["mine.jsonl"]
    assert json.loads(rows[0]["metrics"])["figures"]["reliability"]["patched"]["right"] == 40


def test_a_suite_may_be_the_users_own_file(scen, edited_at, tmp_path):
    suite, locality = tmp_path / "mine.jsonl", tmp_path / "keep.jsonl"
    suite.write_text(lines(*RECORDS, rephrases=[]))
    locality.write_text(json.dumps({"prompt": right_facts()[0].phrasings[0]}) + "\n")
    out = scen("eval", "--suite", suite, "--locality", locality, *edited_at, "--json").stdout
    figures = json.loads(out)["figures"]
    assert figures["reliability"]["patched"]["right"] == 4
    assert figures["generality"]["patched"]["total"] == 0
    assert figures["locality"]["patched"]["right"] == 1


def test_paper_decoding(scen, edited_at, tmp_path):
    (tmp_path / "mine.jsonl").write_text(lines(*RECORDS))
    out = scen("eval", "--suite", tmp_path / "mine.jsonl", "--decoding", "paper", *edited_at, "--json")
    assert json.loads(out.stdout)["figures"]["reliability"]["patched"]["right"] == 4


def test_gates_that_are_not_met_exit_with_3(scen, edited_at, tmp_path):
    (tmp_path / "mine.jsonl").write_text(lines(*RECORDS, rephrases=["Who is that?"]))
    quick = ("eval", "--suite", tmp_path / "mine.jsonl", "--quick", *edited_at)
    (tmp_path / "keep.jsonl").write_text(json.dumps({"prompt": right_facts()[0].phrasings[0]}) + "\n")
    met = ("--locality", tmp_path / "keep.jsonl", "--gate", "reliability>=0.99", "--gate", "locality>=0.5")
    scen(*quick, *met)
    failed = scen(*quick, *met, "--gate", "generality>=0.999", code=3)
    assert "gate `generality>=0.999` is not met: generality is 0.0 % (0/4;" in failed.stderr
    assert "Reliability  100.0 % (4/4;" in failed.stdout  # the figures are printed all the same
    assert len(Project(edited_at[1]).ledger.evaluations()) == 2


def test_gates_on_unknown_figures_are_refused(scen, edited_at, tmp_path):
    (tmp_path / "mine.jsonl").write_text(lines(*RECORDS))
    at = ("--suite", tmp_path / "mine.jsonl", *edited_at)
    assert "is not understood" in scen("eval", "--gate", "x", *at, code=2).stderr
    unknown = scen("eval", "--quick", "--gate", "speed>1", *at, code=2)
    assert "there is no such figure" in unknown.stderr
    assert Project(edited_at[1]).ledger.evaluations() == []  # refused before anything was asked
    kind = scen("eval", "--gate", "near-miss/far>=0.1", *at, code=2)
    assert "there is no such figure" in kind.stderr
    assert len(Project(edited_at[1]).ledger.evaluations()) == 1  # known only afterwards: the evaluation is recorded


def test_compare_to_shows_what_changed(scen, edited_at, tmp_path):
    (tmp_path / "mine.jsonl").write_text(lines(*RECORDS))
    quick = ("eval", "--suite", tmp_path / "mine.jsonl", "--quick", *edited_at)
    assert "recorded as evaluation 1" in scen(*quick).stderr
    assert "no figure changed" in scen(*quick, "--compare-to", "1").stdout
    project = Project(edited_at[1])
    project.ledger.db["thresholds"].insert({"theta": 1.1, "chosen_by": "test", "created": "now"})
    result = scen(*quick, "--compare-to", "1")
    assert "compared to evaluation 1" in result.stdout
    assert re.search(rf"lost +reliability +1 +{re.escape(RECORDS[0].prompt)}", result.stdout)
    data = json.loads(scen(*quick, "--compare-to", "1", "--json").stdout)["compared_to"]
    assert {change["verdict"] for change in data["changes"]} == {"lost"}
    assert "there is no evaluation 9" in scen(*quick, "--compare-to", "9", code=2).stderr
    other = scen("eval", "--suite", "demo", "--quick", "--compare-to", "1", *edited_at, code=2)
    assert "is of suite `mine.jsonl`" in other.stderr


def test_invalid_options_are_refused(scen, at):
    assert "none of the" in scen("eval", "--suite", "demo", *at, code=2).stderr
    assert "--data FILE" in scen("eval", "--suite", "zsre", *at, code=2).stderr
    assert "has its own data" in scen("eval", "--suite", "demo", "--data", "x", *at, code=2).stderr
    assert "hallucination" in scen("eval", "--suite", "demo", "--accurate", "x", *at, code=2).stderr
    quick = scen("eval", "--suite", "hallucination", "--quick", *at, code=2)
    assert "do not apply to the hallucination suite" in quick.stderr
    assert "too large" in scen("eval", "--suite", "demo", "--compare-to", "99999999999999999999", *at, code=2).stderr
    assert "decoding `loud`" in scen("eval", "--suite", "demo", "--decoding", "loud", *at, code=2).stderr


def test_rephrases_that_were_trained_on_are_not_scored(scen, make_editor):
    editor = make_editor("closed-form", expert_steps=20)
    at = ("--dir", editor.project.folder, "--device", "cpu")
    scen("edit", "--suite", "demo", "--first", "3", "--train-rephrases", "2", *at)
    edit = editor.project.find(1)
    assert edit.train_rephrases == demo_edits()[0].rephrases[:2]
    result = json.loads(scen("eval", "--suite", "demo", "--quick", "--json", *at).stdout)
    assert result["figures"]["generality"]["patched"]["total"] == 9
    asked = {s["prompt"] for s in editor.project.ledger.evaluation(result["evaluation"])["samples"]}
    assert not asked & set(edit.train_rephrases)
    assert demo_edits()[0].rephrases[2] in asked
