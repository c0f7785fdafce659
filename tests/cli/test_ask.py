"""`scen ask`."""

from __future__ import annotations

import json

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from tests.cli.records import RECORDS
from tests.conftest import edit_all

FAST = {"expert_steps": 1, "extra_steps": 0, "prompt_augmentations": 0, "require_learned": False}


def test_an_activated_edit_is_named_with_its_activation(scen, edited_at):
    answer = json.loads(scen("ask", RECORDS[0].rephrases[0], *edited_at, "--json").stdout)
    assert (answer["patched"], answer["edit"]) == (RECORDS[0].target, 1)
    assert answer["base"] != answer["patched"]
    assert answer["neurons"][0]["edit"] == 1
    activations = [neuron["activation"] for neuron in answer["neurons"]]
    assert activations == sorted(activations, reverse=True)
    assert len(activations) == 3
    assert activations[0] > answer["theta"] > activations[1]


def test_an_unedited_prompt_is_answered_by_the_base(scen, edited_at):
    fact = right_facts()[0]
    result = scen("ask", fact.phrasings[0], *edited_at)
    assert "no edit was activated: the base answers" in result.stdout
    answer = json.loads(scen("ask", fact.phrasings[0], *edited_at, "--json").stdout)
    assert answer["base"] == answer["patched"] == fact.answer


def test_prompts_that_are_no_text_are_refused(scen, at):
    assert "the prompt is empty" in scen("ask", " ", *at, code=2).stderr
    assert "half a Unicode character" in scen("ask", "\udcff abc", *at, code=2).stderr


def test_many_prompts_are_answered_as_one_is(scen, edited_at, tmp_path):
    prompts = [RECORDS[0].rephrases[0], right_facts()[0].phrasings[0], RECORDS[1].prompt] * 7  # more than one batch
    lines = "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts)
    (tmp_path / "prompts.jsonl").write_text(lines)
    rows = json.loads(scen("ask", "--file", tmp_path / "prompts.jsonl", *edited_at, "--json").stdout)
    assert [row["prompt"] for row in rows] == prompts
    for row in rows[:3]:
        one = json.loads(scen("ask", row["prompt"], *edited_at, "--json").stdout)
        assert row == {name: one[name] for name in ("prompt", "edit", "base", "patched")}
    shown = scen("ask", "--file", "-", *edited_at, stdin=lines).stdout.splitlines()
    assert len(shown) == 1 + len(prompts)
    assert shown[1].split()[-1] == RECORDS[0].target


def test_a_prompt_or_a_file_is_needed(scen, edited_at, tmp_path):
    (tmp_path / "text.jsonl").write_text("Who is it?")
    for arguments, message in {
        (): "give a prompt, or `--file`",
        ("Who?", "--file", "x.jsonl"): "give a prompt, or `--file`",
        ("--file", "x.jsonl", "--trace"): "needs a prompt",
        ("--file", tmp_path / "text.jsonl"): "text.jsonl:1: no `prompt` here",
        ("--file", "missing.jsonl"): "cannot read `missing.jsonl`",
    }.items():
        assert message in scen("ask", *arguments, *edited_at, code=2).stderr


def test_a_project_without_edits_answers_like_the_base(scen, at):
    answer = json.loads(scen("ask", "Who?", *at, "--json").stdout)
    assert answer["neurons"] == []
    assert answer["base"] == answer["patched"]


def test_trace_shows_segments_and_edits_blocked_by_the_subject_filter(scen, make_editor):
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, demo_edits()[:12])
    at = ("--dir", editor.project.folder, "--device", "cpu")
    record = demo_edits()[5]
    answer = json.loads(scen("ask", "--trace", "--json", f"Thanks. {record.prompt}", *at).stdout)
    assert answer["edit"] == 6
    whole, sentence = answer["trace"]["segments"]
    assert whole["text"].startswith("<s>[INST]Thanks.")
    assert sentence["text"].startswith("<s>[INST] Where")
    assert sentence["edit"] == 6
    assert sentence["activation"] > whole["activation"]
    assert len(answer["trace"]["guard"]) == 5
    # The base gives the key of the edit, but the subject is another one.
    other = record.prompt.replace(record.subject, f"K{record.subject}")
    answer = json.loads(scen("ask", "--trace", "--json", other, *at).stdout)
    assert answer["edit"] is None
    shown = scen("ask", "--trace", other, *at).stdout
    assert answer["trace"]["segments"][0]["activation"] > answer["theta"]
    assert answer["trace"]["blocked"] == [6]
    assert "but the prompt does not name its subject: Ivan Gromener" in shown
    assert "nearest guard prompts" in shown
