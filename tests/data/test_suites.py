"""Suites: the embedded one, zsRE's published forms, and a user's own file."""

from __future__ import annotations

import json

import pytest

from scen_cli.data.records import EditRecord, Neighbour
from scen_cli.data.suites import load_suite
from scen_cli.errors import UsageError

KNOWEDIT = {
    "subject": "ZIC3",
    "prompt": "What species is ZIC3 specific to?",
    "target_new": "male",
    "ground_truth": ["human"],
    "rephrase_prompt": "In which living being can you find ZIC3?",
    "locality": {},
}
MEND = {
    "src": "Who wrote Faust?",
    "alt": "Schiller",
    "rephrase": "Faust was written by whom?",
    "loc": "x",
    "loc_ans": "y",
}
SCEN = {"Q": "Who painted Guernica?", "A": "Dali", "rephrases": ["Guernica is by whom?", "Whose is Guernica?"]}


def test_the_demo_suite_has_its_own_locality_prompts():
    suite = load_suite("demo")
    assert len(suite.edits) >= 400
    assert len(suite.locality) >= 500
    assert not {record.prompt for record in suite.edits} & set(suite.locality)


def test_every_published_form_of_zsre(tmp_path):
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([KNOWEDIT, MEND, SCEN, KNOWEDIT]))
    assert load_suite("zsre", path).edits == [
        EditRecord(
            prompt=KNOWEDIT["prompt"],
            target="male",
            subject="ZIC3",
            rephrases=(KNOWEDIT["rephrase_prompt"],),
            truth=("human",),
        ),
        EditRecord(
            prompt=MEND["src"],
            target="Schiller",
            rephrases=(MEND["rephrase"],),
            locality=(Neighbour(prompt="x", target="y", kind="unrelated"),),
        ),
        EditRecord(prompt=SCEN["Q"], target="Dali", rephrases=tuple(SCEN["rephrases"])),
    ]


def test_the_real_zsre_file(shared_data):
    suite = load_suite("zsre", shared_data / "zsre" / "ZsRE-test-all.json")
    assert len(suite.edits) == 1286  # of 1,304 records; the others repeat a prompt
    assert suite.edits[0].prompt == "Which family does Epaspidoceras belong to?"
    assert suite.edits[0].target == "Noctuidae"
    assert suite.edits[0].rephrases == ("What family are Epaspidoceras?",)


def test_a_record_of_no_known_form_is_named(tmp_path):
    path = tmp_path / "zsre.jsonl"
    path.write_text(json.dumps(MEND) + "\n" + json.dumps({"question": "?"}) + "\n")
    with pytest.raises(UsageError, match="zsre.jsonl:2: is of none of the known forms"):
        load_suite("zsre", path)
    for bad in ("[1]", '[{"src": "x"}]', '[{"prompt": "a", "target_new": []}]', '[{"Q": "a", "A": null}]'):
        path.write_text(bad)
        with pytest.raises(UsageError, match="zsre.jsonl:1: "):
            load_suite("zsre", path)
    with pytest.raises(UsageError, match="--data FILE"):
        load_suite("zsre")


def test_a_users_own_file_and_locality_prompts(tmp_path):
    edits, prompts = tmp_path / "mine.jsonl", tmp_path / "keep.jsonl"
    edits.write_text('{"prompt": "a?", "target": "b"}\n')
    prompts.write_text('{"prompt": "c?"}\n{"prompt": "d?"}\n')
    suite = load_suite(str(edits), locality=prompts)
    assert suite.name == "mine.jsonl"
    assert suite.locality == ["c?", "d?"]
    for bad in ('{"q": "d?"}', '{"prompt": null}', '{"prompt": ""}', "7", "{"):
        prompts.write_text('{"prompt": "c?"}\n' + bad + "\n")
        with pytest.raises(UsageError, match="keep.jsonl:2: no `prompt`"):
            load_suite(str(edits), locality=prompts)
    prompts.write_text("\n")
    with pytest.raises(UsageError, match="holds no prompts"):
        load_suite(str(edits), locality=prompts)
