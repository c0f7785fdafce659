"""`scen edit`: where records come from, and what becomes of each."""

from __future__ import annotations

import json
import os

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.editing.create_project import new_project
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.cli.records import RECORDS, lines


def test_edit_of_the_same_file_again_skips_its_records(scen, at, tmp_path):
    (tmp_path / "e.jsonl").write_text(lines(*RECORDS))
    first = scen("edit", tmp_path / "e.jsonl", *at)
    assert "4 edited, 0 skipped, 0 failed; 4 active edits" in first.stdout
    assert f"edit 1: {RECORDS[0].prompt} -> {RECORDS[0].target}" in first.stderr
    again = json.loads(scen("edit", tmp_path / "e.jsonl", *at, "--json").stdout)
    assert (again["edited"], again["skipped"], again["active"]) == (0, 4, 4)
    scen("verify", *at)


def test_edit_from_standard_input_and_from_options(scen, at):
    assert "2 edited" in scen("edit", "-", *at, stdin=lines(*RECORDS[:2])).stdout
    scen("edit", "--prompt", RECORDS[2].prompt, "--target", RECORDS[2].target, *at)
    assert Project(at[1]).find(3).source == "command line"
    first = ("--prompt", RECORDS[0].prompt, "--target", RECORDS[0].target)
    again = json.loads(scen("edit", *first, *at, "--json").stdout)
    assert (again["edited"], again["edits"][0]["reason"]) == (0, "already edit 1")


@pytest.mark.parametrize(
    "options",
    [[], ["e.jsonl", "--prompt", "a"], ["--suite", "demo", "--prompt", "a", "--target", "b"]],
)
def test_only_one_source_of_records_is_accepted(scen, at, options):
    assert "give one of" in scen("edit", *options, *at, code=2).stderr


def test_prompt_without_target_is_refused(scen, at):
    assert "go together" in scen("edit", "--prompt", "Who?", *at, code=2).stderr
    assert (
        "`--subject` belongs to `--prompt`" in scen("edit", "--suite", "demo", "--subject", "Ada", *at, code=2).stderr
    )


def test_a_bad_line_stops_the_run_or_is_skipped(scen, at, tmp_path):
    (tmp_path / "e.jsonl").write_text(lines(RECORDS[0]) + '{"prompt": "Who?"}\n' + lines(RECORDS[1]))
    strict = scen("edit", tmp_path / "e.jsonl", *at, code=2)
    assert "e.jsonl:2: `target` is missing" in strict.stderr
    assert "nothing was edited" in strict.stderr
    assert Project(at[1]).ledger.edits() == []
    result = scen("edit", tmp_path / "e.jsonl", "--keep-going", *at, code=3)
    assert "e.jsonl:2: not edited: `target` is missing" in result.stderr
    assert "2 edited, 0 skipped, 1 failed" in result.stdout


def test_a_prompt_longer_than_the_context_is_refused(scen, at):
    long = json.dumps({"prompt": "Where " * 300, "target": "Riga"}) + "\n"
    result = scen("edit", "-", *at, stdin=lines(RECORDS[0]) + long, code=2)
    assert "-:2: 'Where Where" in result.stderr
    assert "the base's context is 256" in result.stderr
    assert Project(at[1]).ledger.edits() == []


def test_a_target_that_is_not_learned_fails_and_is_not_tried_again(scen, tmp_path):
    at = ("--dir", tmp_path / "p")
    scen("init", "--model", "demo", "--recipe", "paper", "--set", "expert_steps=1", *at)
    (tmp_path / "e.jsonl").write_text(lines(*RECORDS[:2]))
    result = scen("edit", tmp_path / "e.jsonl", "--keep-going", *at, code=3)
    assert "e.jsonl:1: not edited: target not learned: " in result.stderr
    assert "still wrong after 1 steps" in result.stderr
    assert "0 edited, 0 skipped, 2 failed; 0 active edits" in result.stdout
    strict = scen("edit", "-", *at, stdin=lines(*RECORDS[2:4]), code=3)
    assert "stopped with 1 records left" in strict.stderr
    again = scen("edit", tmp_path / "e.jsonl", *at, code=3)
    assert "e.jsonl:1: its target was not learned when it was tried as edit 1" in again.stderr
    result = scen("edit", tmp_path / "e.jsonl", "--keep-going", *at, code=3)
    assert "0 edited, 0 skipped, 2 failed" in result.stdout


def test_a_new_target_for_a_prompt_supersedes_the_old_edit(scen, at):
    scen("edit", "--prompt", RECORDS[0].prompt, "--target", "Peru", *at)
    result = scen("edit", "--prompt", RECORDS[0].prompt, "--target", "Cuba", *at)
    assert "supersedes edit 1" in result.stderr
    assert json.loads(scen("ask", RECORDS[0].prompt, *at, "--json").stdout)["patched"] == "Cuba"
    states = json.loads(scen("status", *at, "--json").stdout)["states"]
    assert (states["active"], states["superseded"]) == (1, 1)


def test_a_reverted_edit_is_not_made_again_from_its_file(scen, at, tmp_path):
    (tmp_path / "e.jsonl").write_text(lines(*RECORDS[:2]))
    scen("edit", tmp_path / "e.jsonl", *at)
    scen("revert", "1", *at)
    again = json.loads(scen("edit", tmp_path / "e.jsonl", *at, "--json").stdout)
    assert again["edits"][0]["reason"].startswith("edit 1 of this file is reverted")
    assert again["active"] == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "e.jsonl").write_text(lines(RECORDS[2]))  # another file of the same name
    assert "1 edited" in scen("edit", tmp_path / "other" / "e.jsonl", *at).stdout
    scen("edit", "--prompt", RECORDS[0].prompt, "--target", RECORDS[0].target, *at)  # options make it again
    assert Project(at[1]).find(4).state == "active"


def test_an_edit_that_its_own_prompt_does_not_activate_warns(scen, tmp_path):
    at = ("--dir", tmp_path / "p")
    rates = ("--set", "neuron_lr=1e-4", "--set", "neuron_steps=20")  # the paper's
    scen("init", "--model", "demo", "--recipe", "paper", *rates, *at)
    result = scen("edit", "-", *at, stdin=lines(RECORDS[0]))
    assert "its own prompt does not activate it: activation 0.5" in result.stderr
    assert "theta 0.65" in result.stderr
    assert json.loads(scen("ask", RECORDS[0].prompt, *at, "--json").stdout)["edit"] is None


@pytest.mark.parametrize("recipe", ["key", pytest.param("closed-form", marks=pytest.mark.slow)])
def test_the_same_edits_give_the_same_files(scen, tmp_path, recipe):
    names = []
    for folder in ("a", "b"):
        at = ("--dir", tmp_path / folder)
        scen("init", "--model", "demo", "--recipe", recipe, *at)
        scen("edit", "--suite", "demo", "--first", "3", *at)
        names.append(sorted(path.name for path in (tmp_path / folder / "edits").iterdir()))
    assert names[0] == names[1]  # a name contains the sha256 of the content


def test_a_prompt_with_braces_for_its_subject_is_refused(scen, at):
    one = ("edit", "--prompt", "{} was born in", "--target", "Riga", "--subject", "Ada", *at)
    assert "command line: `prompt` has `{}` in the place of its subject: write 'Ada' there" in scen(*one, code=2).stderr


def test_records_without_a_subject_are_told_what_they_miss(scen, tmp_path, demo_base):
    at = ("--dir", tmp_path / "p")
    changes = {
        "mask_subject": True,
        "same_subject": None,
        "false_activation": None,
        "expert_steps": 1,
        "require_learned": False,
    }
    guard = [record.prompt for record in demo_edits()[100:160]]
    (tmp_path / "guard.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in guard))
    new_project(tmp_path / "p", "demo", changes=changes, guard=tmp_path / "guard.jsonl", base=demo_base).close()
    first, second = (("--prompt", record.prompt, "--target", record.target) for record in demo_edits()[:2])
    assert "the edit has no `subject`" in scen("edit", *first, "--keep-going", *at).stderr
    named = scen("edit", *second, "--subject", str(demo_edits()[1].subject), "--keep-going", *at)
    assert "subject" not in named.stderr


def test_a_file_name_that_is_not_utf8_is_recorded_readably(scen, make_editor, tmp_path):
    project = make_editor("key", expert_steps=1, require_learned=False).project
    file = tmp_path / os.fsdecode(b"na\xefve.jsonl")
    file.write_text(json.dumps({"prompt": "Who is it?", "target": "Kenya"}))
    assert "1 edited" in scen("edit", file, "--dir", project.folder, "--device", "cpu").stdout
    assert project.ledger.edits()[0].source.endswith("na\\udcefve.jsonl")
    assert verify(project, deep=True) == []
