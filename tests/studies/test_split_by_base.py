"""D_edit and D_loc: what the base has wrong and right, and going on after a stop."""

from __future__ import annotations

import json

import pytest
from filelock import FileLock

from scen_cli.data.entries import good_records
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import demo_edits, read_prompts
from scen_cli.demo.facts import right_facts
from scen_cli.errors import ProjectLocked, UsageError
from scen_cli.studies.split_by_base import divide, fitting

RIGHT = [EditRecord(prompt=fact.phrasings[0], target=fact.answer) for fact in right_facts()[:70]]
WRONG = demo_edits()[:30]
ALSO_RIGHT = RIGHT[0].model_copy(update={"prompt": right_facts()[80].phrasings[0], "target": "x"})


def nothing(_line, _pace):
    pass


def test_by_what_the_base_answers(edited, tmp_path):
    """By the base, not by the active edits; any of several true answers is right."""
    known = right_facts()[80]
    several = EditRecord(prompt=known.phrasings[0], target="counterfactual", truth=("another", known.answer))
    found = divide(edited, [*WRONG, *RIGHT, several], tmp_path / "d", "greedy", nothing)
    assert [record.prompt for record in found.edits] == [record.prompt for record in WRONG]
    assert found.locality == [record.prompt for record in [*RIGHT, several]]
    assert good_records(str(tmp_path / "d" / "d_edit.jsonl")) == found.edits
    assert read_prompts(tmp_path / "d" / "d_loc.jsonl") == found.locality
    assert list(fitting(found, 40)) == ["only 30 of the questions are answered wrongly: fewer than 40 edits"]
    assert len(list(fitting(type(found)("x", [], []), 1))) == 2


def test_a_stopped_division_goes_on(edited, tmp_path, monkeypatch):
    whole = divide(edited, [*WRONG, *RIGHT], tmp_path / "whole", "greedy", nothing)

    def stop(_line, pace):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        divide(edited, [*WRONG, *RIGHT], tmp_path / "broken", "greedy", stop)
    answers = tmp_path / "broken" / "answers.jsonl"
    assert 0 < answers.read_text().count("\n") < 100
    kept = answers.read_text()
    answers.write_text(kept + '{"prompt": "half a li')
    asked = []
    answer = edited.answer

    def counting(prompts, **options):
        asked.extend(prompts)
        return answer(prompts, **options)

    monkeypatch.setattr(edited, "answer", counting)
    again = divide(edited, [*WRONG, *RIGHT], tmp_path / "broken", "greedy", nothing)
    assert (again.edits, again.locality) == (whole.edits, whole.locality)
    assert len(asked) == 100 - kept.count("\n")
    assert answers.read_text() == (tmp_path / "whole" / "answers.jsonl").read_text()
    assert [json.loads(line)["prompt"] for line in answers.read_text().splitlines()][:30] == [w.prompt for w in WRONG]


def test_a_folder_of_other_questions_is_refused(edited, tmp_path):
    divide(edited, WRONG[:2], tmp_path / "d", "greedy", nothing)
    with pytest.raises(UsageError, match="other questions"):
        divide(edited, WRONG[:3], tmp_path / "d", "greedy", nothing)
    with pytest.raises(UsageError, match="other questions"):
        divide(edited, WRONG[:2], tmp_path / "d", "paper", nothing)


def test_answers_to_other_questions_are_not_taken_for_these(edited, tmp_path):
    """As two runs at once would have left them, were there no lock."""
    odd = [record.model_copy(update={"prompt": record.prompt.replace(" ", "\u2028", 1)}) for record in WRONG[:3]]
    whole = divide(edited, [*odd, *WRONG[:9]], tmp_path / "d", "greedy", nothing)
    answers = tmp_path / "d" / "answers.jsonl"
    lines = answers.read_text(encoding="utf-8").split("\n")
    answers.write_text("\n".join([*lines[:5], "{damaged", *lines[6:]]), encoding="utf-8")
    assert divide(edited, [*odd, *WRONG[:9]], tmp_path / "d", "greedy", nothing).edits == whole.edits
    answers.write_text("\n".join([*lines[:5], *lines[:5], ""]), encoding="utf-8")
    again = divide(edited, [*odd, *WRONG[:9]], tmp_path / "d", "greedy", nothing)
    assert (again.edits, again.locality) == (whole.edits, whole.locality)
    assert answers.read_text(encoding="utf-8").split("\n") == lines
    with (
        FileLock(tmp_path / "d" / "lock"),
        pytest.raises(ProjectLocked, match="another process is dividing"),
    ):
        divide(edited, [*odd, *WRONG[:9]], tmp_path / "d", "greedy", nothing)


def test_other_rephrases_are_other_questions(edited, tmp_path):
    divide(edited, WRONG[:2], tmp_path / "d", "greedy", nothing)
    other = [record.model_copy(update={"rephrases": ("Another?",)}) for record in WRONG[:2]]
    with pytest.raises(UsageError, match="other questions"):
        divide(edited, other, tmp_path / "d", "greedy", nothing)
