"""A record that contradicts an edit is found before anything is trained, and refused, superseding or kept."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata

import pytest

from scen_cli.data.entries import read_entries
from scen_cli.data.records import EditRecord
from scen_cli.editing.editor import Editor
from tests.conftest import edit_all

FIRST = EditRecord(prompt="Where was Ivan Gromener born?", target="Riga", subject="Ivan Gromener")
REPHRASED = {"prompt": "In which city was Ivan Gromener born?", "target": "Seoul"}
SAME_WORDS = {"prompt": "where was Ivan Gromener born", "target": "Seoul"}
SAME_TARGET = {"prompt": "In which city was Ivan Gromener born?", "target": "Riga"}
OTHER_FACT = {"prompt": "Which instrument does Ivan Gromener play?", "target": "lute"}
FAST = {"expert_steps": 1, "extra_steps": 0, "prompt_augmentations": 0, "require_learned": False}


@pytest.fixture
def project(make_editor):
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, [FIRST])
    return editor.project


@pytest.fixture
def learned_project(make_editor):
    """A project whose edits are learned, so that `reason` is about the conflict and not about a missed target."""
    editor = make_editor("closed-form", **{**FAST, "expert_steps": 20})
    edit_all(editor, [FIRST])
    return editor.project


def run(scen, project, records, *options, code=0):
    lines = "\n".join(json.dumps(record) for record in records)
    return scen("edit", "-", "--dir", project.folder, "--device", "cpu", *options, stdin=lines, code=code)


def states(project) -> list[str]:
    return [edit.state for edit in project.ledger.edits()]


@pytest.mark.parametrize("record", [REPHRASED, SAME_WORDS])
def test_another_target_for_the_same_question_is_refused(scen, project, record):
    result = run(scen, project, [OTHER_FACT, record], code=2)
    assert "-:2: edit 1 ('Where was Ivan Gromener born?' -> 'Riga') is the same question" in result.stderr
    assert "`--conflicts supersede` or `--conflicts keep`" in result.stderr
    assert [edit.id for edit in project.ledger.edits()] == [1]


@pytest.mark.parametrize("record", [SAME_TARGET, OTHER_FACT])
def test_another_fact_or_the_same_target_is_no_conflict(scen, project, record):
    run(scen, project, [record])
    assert states(project) == ["active", "active"]


@pytest.mark.parametrize(
    "records",
    [
        [("Who designed the language C?", "Ada"), ("Who designed the language C++?", "Bo")],
        [("Who designed the language C++?", "Ada"), ("Who designed the language C#?", "Bo")],
        [("Who is the father of Ida Kern?", "Karl"), ("Who is the mother of Ida Kern?", "Olga")],
        [("When was Ida Kern born?", "1911"), ("When did Ida Kern die?", "1980")],
    ],
)
def test_questions_that_differ_in_a_word_each_stand_together_with_a_warning(scen, make_editor, records):
    editor = make_editor("closed-form", **FAST)
    pair = [{"prompt": prompt, "target": target} for prompt, target in records]
    shown = run(scen, editor.project, pair).stderr
    assert states(editor.project) == ["active", "active"]
    assert editor.route([prompt for prompt, _target in records]).edits == [1, 2]
    assert "language" not in records[0][0] or "may be the same question" in shown  # the demo's keys differ otherwise


def test_targets_that_differ_in_the_form_of_an_accent_alone_do_not_contradict(scen, make_editor):
    project = make_editor("key", **FAST).project
    composed, apart = (unicodedata.normalize(form, "São Tomé") for form in ("NFC", "NFD"))
    run(scen, project, [{"prompt": "Where is Zorn?", "target": composed}, {"prompt": "where is Zorn", "target": apart}])
    assert len(states(project)) == 2


def test_supersede_replaces_the_contradicted_edit(scen, project):
    result = run(scen, project, [REPHRASED], "--conflicts", "supersede")
    assert "supersedes edit 1" in result.stderr
    edits = [(edit.state, edit.superseded_by) for edit in project.ledger.edits()]
    assert edits == [("superseded", 2), ("active", None)]


def test_supersede_with_two_records_of_one_question_leaves_the_last(scen, project):
    records = [{**SAME_WORDS, "target": "Lima"}, {"prompt": "Where was Ivan Gromener born", "target": "Oslo"}]
    run(scen, project, records, "--conflicts", "supersede")
    assert states(project) == ["superseded", "superseded", "active"]


def test_keep_records_the_reason_and_supersede_replaces_both(scen, learned_project):
    project = learned_project
    run(scen, project, [REPHRASED], "--conflicts", "keep", "--reason", "two people of that name")
    assert states(project) == ["active", "active"]
    reason = json.loads(scen("show", "2", "--dir", project.folder, "--json").stdout)["reason"]
    assert reason.startswith("kept beside edit 1 ('Where was Ivan Gromener born?' -> 'Riga')")
    assert reason.endswith(": two people of that name")
    third = {"prompt": "Ivan Gromener was born in what?", "target": "Lima"}
    run(scen, project, [third], "--conflicts", "supersede")
    assert states(project) == ["superseded", "superseded", "active"]


def test_records_of_one_run_that_contradict_each_other(scen, make_editor):
    project = make_editor("closed-form", **FAST).project
    pair = [FIRST.as_json(), REPHRASED]
    assert "-:2: an earlier record" in run(scen, project, pair, code=2).stderr
    assert project.ledger.edits() == []
    skipped = run(scen, project, pair, "--keep-going", code=3)
    assert "1 edited, 0 skipped, 1 failed" in skipped.stdout
    run(scen, project, [{**REPHRASED, "target": "Lima"}], "--conflicts", "supersede")
    assert states(project) == ["superseded", "active"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--conflicts", "fight"], "`--conflicts fight` is not known"),
        (["--conflicts", "keep"], "`--conflicts keep` and `--reason` go together"),
        (["--reason", "because"], "`--conflicts keep` and `--reason` go together"),
    ],
)
def test_invalid_options_are_refused(scen, project, options, message):
    assert message in run(scen, project, [REPHRASED], *options, code=2).stderr


def test_without_whitened_keys_only_the_same_words_conflict(scen, make_editor):
    editor = make_editor("paper", expert_steps=1, require_learned=False)
    edit_all(editor, [FIRST])
    assert "is the same question, with another target" in run(scen, editor.project, [SAME_WORDS], code=2).stderr
    run(scen, editor.project, [REPHRASED])


@pytest.fixture
def many(tmp_path, make_editor):
    """A project, and a file of 4,000 questions about as many subjects."""
    path = tmp_path / "many.jsonl"
    lines = [{"prompt": f"Where was Ada {n} born?", "target": f"R{n % 3}", "subject": f"Ada {n}"} for n in range(4000)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return make_editor("closed-form", **FAST).project, path


@pytest.mark.slow
def test_planning_reports_its_steps(many, demo_base):
    project, path = many
    records = [json.loads(line) for line in path.read_text().splitlines()[:1100]]
    again = [{**record, "prompt": f"Which town does {record['subject']} come from?"} for record in records]
    path.write_text("\n".join(map(json.dumps, [*records, *again])))
    editor, steps = Editor(project, base=demo_base), []
    plan = editor.plan(read_entries(str(path)), progress=lambda done, total: steps.append((done, total)))
    assert steps[:2200] == [(done, 4400) for done in range(1, 2201)]  # each record is checked
    compared = steps[2200:]  # two about each subject: keys are read in three batches
    assert compared == [(3224, 4400), (4248, 4400), (4400, 4400), (4400, 4400)]
    assert plan.outcomes == [None] * 2200


@pytest.mark.slow
def test_planning_many_records_takes_little_memory(many):
    project, path = many
    code = f"""
import re
from pathlib import Path
from scen_cli.data.entries import read_entries
from scen_cli.editing.editor import Editor
from scen_cli.project.project import Project
editor, entries = Editor(Project(Path({str(project.folder)!r})), "cpu"), read_entries({str(path)!r})
editor.plan(entries[:10])
peak = lambda: int(re.search("VmHWM: *(.*) kB", Path("/proc/self/status").read_text().replace("\\t", ""))[1]) >> 10
before = peak()
assert editor.plan(entries).outcomes == [None] * 4000
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40  # MiB; the keys of all records and their cosines take 100
