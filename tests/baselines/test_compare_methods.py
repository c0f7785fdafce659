"""`scen compare`: its table, that it goes on where it stopped, and what it refuses."""

import json

import pytest

from scen_cli.baselines.splits import split
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.demo.facts import right_facts
from scen_cli.errors import UsageError


@pytest.fixture
def project(scen, tmp_path, given):
    guard = tmp_path / "guard.jsonl"
    guard.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in given.prompts[:220]))
    folder = tmp_path / "project"
    scen("init", "--model", "demo", "--dir", folder, "--guard", guard)
    return folder


def test_rows_are_tuned_run_scored_kept_and_drawn(scen, project, edits):
    """On a file of questions: what the base has wrong is edited, what it has right must stay."""
    suite = project / "facts.jsonl"
    right = [EditRecord(prompt=fact.phrasings[0], target=fact.answer) for fact in right_facts()[-40:]]
    suite.write_text("".join(json.dumps(one.as_json()) + "\n" for one in [*edits[:40], *right]))
    options = ("--methods", "melo,ft-tuned", "--suite", suite, "--edits", "10", "--trials", "2", "--dir", project)
    found = json.loads(scen("compare", *options, "--json").stdout)
    assert [row["row"] for row in found["rows"]] == ["melo", "ft-tuned"]
    for row in found["rows"]:
        figures, tuning = row["figures"], row["tuning"]
        assert figures["reliability"]["total"] == 10
        assert figures["generality"]["total"] == 30
        assert 20 <= figures["locality"]["total"] <= 30  # of 40 a quarter is tuned on
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
    kept = project / "compare" / "facts-10"
    assert kept.with_suffix(".png").stat().st_size > 10_000
    again = scen("compare", *options)
    assert "melo: done before" in again.stderr
    assert "tuned on 10 other edits, 2 settings of each at most" in again.stdout
    (kept / "melo.json").unlink()
    partly = json.loads(scen("compare", *options, "--json").stdout)
    assert [row["figures"] for row in partly["rows"]] == [row["figures"] for row in found["rows"]]  # to the digit
    refused = scen("compare", *options[:6], "--trials", "3", *options[8:], code=2)
    assert "another comparison" in refused.stderr


def test_perplexities_are_compared_too(scen, tmp_path, project, edits):
    wiki, accurate = tmp_path / "e.jsonl", tmp_path / "a.jsonl"
    for path, some in ((wiki, edits[:16]), (accurate, edits[40:44])):
        path.write_text("".join(json.dumps({"text": one.prompt, "labels": one.target}) + "\n" for one in some))
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


def test_what_cannot_be_compared_is_refused(scen, project):
    assert "no method `rome`" in scen("compare", "--methods", "rome", "--dir", project, code=2).stderr
    assert "none is left to tune" in scen("compare", "--edits", "5000", "--dir", project, code=2).stderr
    assert "decoding" in scen("compare", "--decoding", "beam", "--dir", project, code=2).stderr


def test_the_parts_of_a_suite_share_no_edit_and_no_claimed_prompt_is_locality():
    records = [EditRecord(prompt=f"p{n}", target="t", rephrases=(f"r{n}",)) for n in range(30)]
    locality = [*(f"l{n}" for n in range(20)), "p3", "r7", "guard"]
    parts = split(Suite("s", [*records, records[0]], locality), 10, {"guard", "p4"}, lambda one: one.prompt != "p2")
    groups = [{one.prompt for one in part} for part in (parts.test, parts.tuning, parts.training)]
    assert [len(group) for group in groups] == [10, 9, 9]
    assert not groups[0] & groups[1] | groups[1] & groups[2] | groups[0] & groups[2]
    assert {"p2", "p4"}.isdisjoint(set.union(*groups))
    assert len(parts.test_locality) == 15
    assert set(parts.test_locality) | set(parts.tuning_locality) == {f"l{n}" for n in range(20)}
    with pytest.raises(UsageError, match="none is left"):
        split(Suite("s", records[:5], []), 5, set(), lambda _one: True)
