"""`scen compare`: its table, how it continues, and what it refuses."""

import json

import pytest

from scen_cli.baselines.scoring import split_suite
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.demo.world import right_facts
from scen_cli.errors import UsageError


@pytest.fixture
def project(scen, tmp_path, context):
    guard = tmp_path / "guard.jsonl"
    guard.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in context.prompts[:220]))
    folder = tmp_path / "project"
    scen("init", "--model", "demo", "--dir", folder, "--guard", guard)
    return folder


@pytest.mark.slow
def test_variants_are_tuned_scored_stored_and_plotted(scen, project, edits):
    """On a file of questions: wrong answers of the base are edited, right ones must stay."""
    suite = project / "facts.jsonl"
    right = [EditRecord(prompt=fact.phrasings[0], target=fact.answer) for fact in right_facts()[-40:]]
    suite.write_text("".join(json.dumps(record.as_json()) + "\n" for record in [*edits[:40], *right]))
    options = ("--methods", "melo,ft-tuned", "--suite", suite, "--edits", "10", "--trials", "2", "--dir", project)
    found = json.loads(scen("compare", *options, "--json").stdout)
    assert [row["row"] for row in found["rows"]] == ["melo", "ft-tuned"]
    for row in found["rows"]:
        figures, tuning = row["figures"], row["tuning"]
        assert figures["reliability"]["total"] == 10
        assert figures["generality"]["total"] == 30
        assert 20 <= figures["locality"]["total"] <= 30  # a quarter of 40 is tuned on
        assert len(tuning["trials"]) == 2
        assert tuning["edits"] == 10
        assert row["retention"][-1]["edits"] == 10
        assert row["seconds_per_edit"] > 0
        assert row["milliseconds_per_token"]["edited"] > 0
        best = max(tuning["trials"], key=lambda trial: trial["average"])
        assert all(row["settings"][name] == value for name, value in best["settings"].items())
    melo, tuned = found["rows"]
    assert melo["bytes_per_edit"] > 0
    assert (tuned["bytes_per_edit"], tuned["fixed_bytes"]) == (0, 3 * 96 * 768 * 4)
    results = project / "compare" / "facts-10"
    assert results.with_suffix(".png").stat().st_size > 10_000
    again = scen("compare", *options)
    assert "melo: done before" in again.stderr
    assert "each method tuned on 10 other edits, with at most 2 settings" in again.stdout
    (results / "melo.json").unlink()
    resumed = json.loads(scen("compare", *options, "--json").stdout)
    assert [row["figures"] for row in resumed["rows"]] == [row["figures"] for row in found["rows"]]  # to the digit
    refused = scen("compare", *options[:6], "--trials", "3", *options[8:], code=2)
    assert "another comparison" in refused.stderr


@pytest.mark.slow
def test_comparison_by_perplexities(scen, tmp_path, project, edits):
    wiki, accurate = tmp_path / "e.jsonl", tmp_path / "a.jsonl"
    for path, records in ((wiki, edits[:16]), (accurate, edits[40:44])):
        path.write_text(
            "".join(json.dumps({"text": record.prompt, "labels": record.target}) + "\n" for record in records)
        )
    found = json.loads(
        scen(
            *("compare", "--suite", "hallucination", "--data", wiki, "--accurate", accurate, "--methods", "scen,ft"),
            *("--edits", "8", "--trials", "1", "--dir", project, "--json"),
        ).stdout
    )
    for row in found["rows"]:
        assert row["figures"]["wikibio-e"]["total"] == 8
        assert row["figures"]["wikibio-a"]["total"] == 3  # a quarter is tuned on
        assert row["figures"]["wikibio-e"]["mean"] > 1
    assert found["rows"][0]["figures"]["wikibio-e"]["mean"] < 1.5
    accurate.write_text(accurate.read_text().replace(edits[40].target, edits[41].target))
    refused = scen(
        *("compare", "--suite", "hallucination", "--data", wiki, "--accurate", accurate, "--methods", "scen"),
        *("--edits", "8", "--trials", "1", "--dir", project),
        code=2,
    )
    assert "another comparison" in refused.stderr


def test_invalid_comparisons_are_refused(scen, project):
    assert "no method `rome`" in scen("compare", "--methods", "rome", "--dir", project, code=2).stderr
    assert "none is left to tune" in scen("compare", "--edits", "5000", "--dir", project, code=2).stderr
    assert "decoding" in scen("compare", "--decoding", "beam", "--dir", project, code=2).stderr


def test_splits_share_no_edit_and_no_claimed_prompt_is_locality():
    records = [EditRecord(prompt=f"p{n}", target="t", rephrases=(f"r{n}",)) for n in range(30)]
    locality = [*(f"l{n}" for n in range(20)), "p3", "r7", "guard"]
    splits = split_suite(
        Suite("s", [*records, records[0]], locality), 10, {"guard", "p4"}, lambda record: record.prompt != "p2"
    )
    groups = [{edit.prompt for edit in split} for split in (splits.test, splits.tuning, splits.training)]
    assert [len(group) for group in groups] == [10, 9, 9]
    assert not groups[0] & groups[1] | groups[1] & groups[2] | groups[0] & groups[2]
    assert {"p2", "p4"}.isdisjoint(set.union(*groups))
    assert len(splits.test_locality) == 15
    assert set(splits.test_locality) | set(splits.tuning_locality) == {f"l{n}" for n in range(20)}
    with pytest.raises(UsageError, match="none is left"):
        split_suite(Suite("s", records[:5], []), 5, set(), lambda _record: True)
