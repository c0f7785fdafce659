"""D_edit and D_loc: questions that the base answers wrongly and rightly; a stopped run resumes."""

from __future__ import annotations

import json

import pytest
from filelock import FileLock

from scen_cli.data.entries import good_records
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import demo_edits, read_prompts
from scen_cli.demo.world import right_facts
from scen_cli.errors import ProjectLocked, UsageError
from scen_cli.studies.split_by_base import split_by_base, suite_warnings

RIGHT = [EditRecord(prompt=fact.phrasings[0], target=fact.answer) for fact in right_facts()[:70]]
WRONG = demo_edits()[:30]
ALSO_RIGHT = RIGHT[0].model_copy(update={"prompt": right_facts()[80].phrasings[0], "target": "x"})


def no_progress(_line, _pace):
    pass


def test_questions_are_split_by_the_answer_of_the_base(edited, tmp_path):
    """The base answers, without the active edits. Each of several true answers is right."""
    known = right_facts()[80]
    several = EditRecord(prompt=known.phrasings[0], target="counterfactual", truth=("another", known.answer))
    found = split_by_base(edited, [*WRONG, *RIGHT, several], tmp_path / "d", "greedy", no_progress)
    assert [record.prompt for record in found.edits] == [record.prompt for record in WRONG]
    assert found.locality == [record.prompt for record in [*RIGHT, several]]
    assert good_records(str(tmp_path / "d" / "d_edit.jsonl")) == found.edits
    assert read_prompts(tmp_path / "d" / "d_loc.jsonl") == found.locality
    assert list(suite_warnings(found, 40)) == ["the base answers only 30 of the questions wrongly: fewer than 40 edits"]
    assert len(list(suite_warnings(type(found)("x", [], []), 1))) == 2


def test_a_stopped_split_resumes(edited, tmp_path, monkeypatch):
    whole = split_by_base(edited, [*WRONG, *RIGHT], tmp_path / "whole", "greedy", no_progress)

    def stop(_line, pace):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split_by_base(edited, [*WRONG, *RIGHT], tmp_path / "broken", "greedy", stop)
    answers = tmp_path / "broken" / "answers.jsonl"
    assert 0 < answers.read_text().count("\n") < 100
    saved = answers.read_text()
    answers.write_text(saved + '{"prompt": "half a li')
    prompts_asked = []
    answer = edited.answer

    def counting(prompts, **options):
        prompts_asked.extend(prompts)
        return answer(prompts, **options)

    monkeypatch.setattr(edited, "answer", counting)
    again = split_by_base(edited, [*WRONG, *RIGHT], tmp_path / "broken", "greedy", no_progress)
    assert (again.edits, again.locality) == (whole.edits, whole.locality)
    assert len(prompts_asked) == 100 - saved.count("\n")
    assert answers.read_text() == (tmp_path / "whole" / "answers.jsonl").read_text()
    assert [json.loads(line)["prompt"] for line in answers.read_text().splitlines()][:30] == [
        record.prompt for record in WRONG
    ]


def test_a_folder_with_other_questions_is_refused(edited, tmp_path):
    split_by_base(edited, WRONG[:2], tmp_path / "d", "greedy", no_progress)
    with pytest.raises(UsageError, match="answers to other questions"):
        split_by_base(edited, WRONG[:3], tmp_path / "d", "greedy", no_progress)
    with pytest.raises(UsageError, match="answers to other questions"):
        split_by_base(edited, WRONG[:2], tmp_path / "d", "paper", no_progress)


def test_damaged_or_foreign_answers_are_asked_again(edited, tmp_path):
    """Duplicate lines: what two runs at once would write without a lock."""
    odd = [record.model_copy(update={"prompt": record.prompt.replace(" ", "\u2028", 1)}) for record in WRONG[:3]]
    whole = split_by_base(edited, [*odd, *WRONG[:9]], tmp_path / "d", "greedy", no_progress)
    answers = tmp_path / "d" / "answers.jsonl"
    lines = answers.read_text(encoding="utf-8").split("\n")
    answers.write_text("\n".join([*lines[:5], "{damaged", *lines[6:]]), encoding="utf-8")
    assert split_by_base(edited, [*odd, *WRONG[:9]], tmp_path / "d", "greedy", no_progress).edits == whole.edits
    answers.write_text("\n".join([*lines[:5], *lines[:5], ""]), encoding="utf-8")
    again = split_by_base(edited, [*odd, *WRONG[:9]], tmp_path / "d", "greedy", no_progress)
    assert (again.edits, again.locality) == (whole.edits, whole.locality)
    assert answers.read_text(encoding="utf-8").split("\n") == lines
    with (
        FileLock(tmp_path / "d" / "lock"),
        pytest.raises(ProjectLocked, match="another process splits questions"),
    ):
        split_by_base(edited, [*odd, *WRONG[:9]], tmp_path / "d", "greedy", no_progress)


def test_other_rephrases_count_as_other_questions(edited, tmp_path):
    split_by_base(edited, WRONG[:2], tmp_path / "d", "greedy", no_progress)
    other = [record.model_copy(update={"rephrases": ("Another?",)}) for record in WRONG[:2]]
    with pytest.raises(UsageError, match="answers to other questions"):
        split_by_base(edited, other, tmp_path / "d", "greedy", no_progress)
