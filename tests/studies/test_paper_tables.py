"""Every study on the demo base at a small size, and the protocol on real questions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from scen_cli.data.suites import load_suite
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.errors import UsageError
from scen_cli.project.project import Project
from scen_cli.studies import paper_tables
from scen_cli.studies.project_variants import ProjectVariant, StudyContext, score_variant
from tests.conftest import revert

EDITS = 24
SHARES = ("reliability", "generality", "locality")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo_base):
    """A project with the demo's rates. All studies in this file run in it and share their variants."""
    return new_project(tmp_path_factory.mktemp("studies") / "p", "demo", recipe="paper", base=demo_base).folder


@pytest.fixture(scope="module")
def small_study(tmp_path_factory, demo_base):
    """The context of a study with four edits and ten locality prompts, and the lines that its progress prints."""
    project = new_project(tmp_path_factory.mktemp("small") / "p", "demo", recipe="paper", base=demo_base)
    demo, lines = load_suite("demo"), []
    suite = replace(demo, edits=demo.edits[:4], locality=demo.locality[:10])
    return StudyContext(
        settings=project.settings,
        theta=project.ledger.threshold().theta,
        guard=None,
        base=demo_base,
        suite=suite,
        decoding="greedy",
        folder=project.folder / "projects",
        progress=lambda line, _pace: lines.append(line),
        warn=lines.append,
    ), lines


@pytest.mark.parametrize(
    ("name", "column", "values"),
    [
        ("table1", "variant", ["paper"]),
        (
            "table3",
            "variant",
            ["W_attn", "W_up", "W_down", "without-disactivate-and-margin", "without-margin", "SCEN loss (equation 8)"],
        ),
        ("table4", "experts", [4, 2, 1]),
        ("fig3", "edits per expert", [1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4]),
        ("fig4", "theta", paper_tables.THETAS),
        ("fig5", "layer", [0, 1, 2, 3]),
    ],
)
def test_each_study_has_its_rows(small_study, name, column, values):
    context, lines = small_study
    study = paper_tables.STUDIES[name]
    variants = study.variants(context)
    result = study.run(context, variants)
    assert [row[column] for row in result.rows] == values
    if name != "fig3":
        assert all(0 <= row[share] <= 1 for row in result.rows for share in SHARES)
    lines.clear()
    assert study.run(context, variants) == result
    assert not any("scored" in line for line in lines)  # the second run reuses edits and scores


def test_a_variant_is_scored_again_after_its_edits_change(small_study):
    context, _lines = small_study
    variant = ProjectVariant("changed")
    assert score_variant(context, variant)["figures"]["reliability"]["patched"]["total"] == 4
    [folder] = context.folder.glob("demo-4-*/changed")
    revert(Project(folder), 2)
    assert score_variant(context, variant)["figures"]["reliability"]["patched"]["total"] == 3
    with pytest.raises(UsageError, match="made with another layer"):
        score_variant(context, replace(variant, layer=1))


def run(scen, folder, name, *options):
    result = json.loads(scen("study", name, "--edits", EDITS, "--dir", folder, "--json", *options).stdout)
    written = folder / "studies"
    assert json.loads((written / f"{name}.json").read_text())["rows"] == result["rows"]
    with (written / f"{name}.csv").open(newline="") as file:
        assert [list(row) for row in csv.DictReader(file)] == [list(row) for row in result["rows"]]
    if name.startswith("fig"):
        assert (written / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return result


@pytest.mark.slow
def test_tables_1_and_2_equal_the_results_of_edit_and_eval(scen, folder, tmp_path):
    [row] = run(scen, folder, "table1")["rows"]
    at = ("--dir", tmp_path / "by_hand")
    scen("init", "--model", "demo", "--recipe", "paper", *at)
    scen("edit", "--suite", "demo", "--first", EDITS, "--keep-going", *at)
    figures = json.loads(scen("eval", "--suite", "demo", "--quick", *at, "--json").stdout)["figures"]
    for role in ("reliability", "generality"):
        assert row[role] == figures[role]["patched"]["share"]
    assert row["locality"] == figures["locality"]["patched"]["share"]
    assert row["average"] == pytest.approx((row["reliability"] + row["generality"] + row["locality"]) / 3)
    assert run(scen, folder, "table2")["rows"] == [row]


@pytest.mark.slow
def test_table_3_compares_modules_and_losses(scen, folder):
    rows = run(scen, folder, "table3")["rows"]
    assert [row["variant"] for row in rows] == [
        "W_attn",
        "W_up",
        "W_down",
        "without-disactivate-and-margin",
        "without-margin",
        "SCEN loss (equation 8)",
    ]
    assert {**rows[2], "variant": ""} == {**rows[5], "variant": ""}
    assert rows[0]["reliability"] < rows[2]["reliability"]  # as in the paper, W_attn learns worst
    assert rows[3]["locality"] < rows[5]["locality"]  # without negatives, Locality falls
    [projects] = (folder / "studies" / "projects").glob(f"demo-{EDITS}-*")
    assert Project(projects / "W_attn").settings["module"] == "model.layers.2.self_attn.o_proj"
    assert Project(projects / "without-margin").settings["recipe"]["margin"] is False


@pytest.mark.slow
def test_rows_do_not_depend_on_the_settings_of_the_current_project(scen, tmp_path):
    at = ("--dir", tmp_path / "p")
    scen("init", "--model", "demo", "--recipe", "key", "--target-module", "up", "--set", "edits_per_expert=2", *at)
    found = scen("study", "table3", "--edits", "4", *at)
    assert "recipe `key` trains no neuron: no losses to compare" in found.stderr
    assert "without-margin" not in found.stdout
    [projects] = (tmp_path / "p" / "studies" / "projects").iterdir()
    by_name = {path.name: Project(path).settings for path in projects.iterdir()}
    assert {name: settings["target_module"] for name, settings in by_name.items()} == {
        "W_attn": "attn",
        "W_up": "up",
        "scen": "down",
    }
    assert {settings["recipe"]["edits_per_expert"] for settings in by_name.values()} == {1}
    rows = json.loads(scen("study", "table1", "--edits", "4", *at, "--json").stdout)["rows"]
    assert [row["variant"] for row in rows] == ["key"]
    assert Project(projects / "own-settings").settings["target_module"] == "up"


def test_wrong_options_are_refused_before_any_training(scen, folder, tmp_path):
    for name in ("table1", "fig4"):
        loud = scen("study", name, "--edits", "5", "--decoding", "loud", "--dir", folder, code=2)
        assert "decoding `loud` is not known" in loud.stderr
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"prompt": "Who?", "target": "x"}\n')
    scen("study", "divide", "--data", questions, "--decoding", "loud", "--dir", folder, code=2)
    assert not (folder / "studies" / "divided-q").exists()
    scen("init", "--model", "demo", "--recipe", "key", "--set", "expert_lr=1e-9", "--dir", tmp_path / "p")
    nothing = scen("study", "fig3", "--edits", "2", "--dir", tmp_path / "p", code=1)
    assert "none of the edits was learned" in nothing.stderr


def test_a_study_splits_a_file_of_questions_and_writes_its_results(scen, folder, tmp_path):
    questions = [{"prompt": record.prompt, "target": record.target} for record in load_suite("demo").edits[:6]]
    questions += [{"prompt": fact.phrasings[0], "target": fact.answer} for fact in right_facts()[:6]]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    out = ("--out", tmp_path / "out", "--dir", folder)
    shown = scen("study", "fig4", "--suite", tmp_path / "q.jsonl", "--edits", "4", *out)
    assert "Fig. 4: the three metrics at each threshold; here suite divided-q, 4 edits" in shown.stdout
    rows = json.loads((tmp_path / "out" / "fig4.json").read_text())["rows"]
    with (tmp_path / "out" / "fig4.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 60
    assert (tmp_path / "out" / "fig4.png").read_bytes().startswith(b"\x89PNG")
    counts = json.loads(scen("study", "divide", "--data", tmp_path / "q.jsonl", *out, "--json").stdout)
    assert (counts["d_edit"], counts["d_loc"]) == (6, 6)
    scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "other")
    other = ("--suite", tmp_path / "q.jsonl", "--edits", "4", "--out", tmp_path / "out", "--dir", tmp_path / "other")
    assert "made with another recipe" in scen("study", "fig4", *other, code=2).stderr


@pytest.mark.slow
def test_table_4_more_edits_per_expert_lower_reliability(scen, folder):
    rows = run(scen, folder, "table4")["rows"]
    assert [row["experts"] for row in rows] == [24, 12, 6]
    assert rows[0]["reliability"] > rows[2]["reliability"]
    assert rows[0]["generality"] > rows[2]["generality"]


@pytest.mark.slow
def test_figure_3_has_one_row_per_edit_and_one_map_per_variant(scen, folder):
    rows = run(scen, folder, "fig3")["rows"]
    assert [row["edits per expert"] for row in rows].count(1) == EDITS
    alone = [row for row in rows if row["edits per expert"] == 1]
    assert all(row["own"] > (row["strongest other"] or 0) for row in alone)
    maps = json.loads((folder / "studies" / "fig3.json").read_text())["maps"]
    assert [len(maps[name]["experts"]) for name in ("1 to 1", "2 to 1", "4 to 1")] == [24, 12, 6]


@pytest.mark.slow
def test_figure_4_raising_theta_lowers_generality_and_raises_locality(scen, folder):
    rows = run(scen, folder, "fig4")["rows"]
    assert {0.60, 0.65, 0.70} <= {row["theta"] for row in rows}
    for role, rises in (("reliability", False), ("generality", False), ("locality", True)):
        shares = [row[role] for row in rows]
        assert shares == sorted(shares, reverse=not rises)
        assert shares[0] != shares[-1]
    at_theta = next(row for row in rows if row["theta"] == 0.65)
    [row] = run(scen, folder, "table1")["rows"]
    assert [at_theta[role] for role in SHARES] == [row[role] for role in ("reliability", "generality", "locality")]


@pytest.mark.slow
def test_figure_5_has_a_point_for_every_layer_of_a_small_base(scen, folder):
    rows = run(scen, folder, "fig5")["rows"]
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_study_reuses_its_projects_and_refuses_other_settings(scen, folder, tmp_path):
    scen("study", "table1", "--edits", EDITS, "--dir", folder)
    again = scen("study", "table1", "--edits", EDITS, "--dir", folder)
    assert "scored" not in again.stderr  # all scores were saved
    few = ("--edits", "3", "--dir", folder, "--json")
    [before] = json.loads(scen("study", "table1", *few).stdout)["rows"]
    [project] = (folder / "studies" / "projects").glob("demo-3-*/scen")
    revert(Project(project), 2)
    [after] = json.loads(scen("study", "table1", *few).stdout)["rows"]
    assert (before["reliability_of"], after["reliability_of"]) == (3, 2)  # scored again after the change
    scen("init", "--model", "demo", "--recipe", "key", "--dir", tmp_path / "other")
    out = ("--out", folder / "studies", "--dir", tmp_path / "other")
    assert "made with another recipe" in scen("study", "table1", "--edits", EDITS, *out, code=2).stderr


@pytest.mark.slow
def test_the_protocol_on_real_questions(scen, shared_data, tmp_path):
    """Fine-tune, split, edit and score real zsRE questions. Too little training for good figures; every stage runs."""
    data, tuned = shared_data / "zsre" / "ZsRE-test-all.json", tmp_path / "tuned"
    small = ("--train", "64", "--epochs", "2", "--lr", "1e-3", "--batch", "32")
    scen("study", "sft", "--model", "demo", "--data", data, "--out", tuned, *small)
    questions = (tuned / "d_test.jsonl").read_text().splitlines()
    assert len(questions) == 1286 - 64
    (tmp_path / "questions.jsonl").write_text("\n".join(questions[:40]) + "\n")
    at = ("--dir", tmp_path / "p")
    rates = ("--set", "expert_lr=0.01", "--set", "expert_steps=20", "--recipe", "key")
    scen("init", "--model", tuned, "--layer", "2", *rates, *at)
    counts = json.loads(scen("study", "divide", "--data", tmp_path / "questions.jsonl", *at, "--json").stdout)
    assert counts["d_edit"] + counts["d_loc"] == 40
    [row] = json.loads(
        scen("study", "table1", "--suite", tmp_path / "questions.jsonl", "--edits", "8", *at, "--json").stdout
    )["rows"]
    assert (row["reliability_of"], row["generality_of"]) == (8, 8)
    assert row["reliability"] * 8 + row["not_learned"] == pytest.approx(8, abs=1)
    assert row["locality"] is None or counts["d_loc"]


def test_the_hallucination_suite_on_real_passages(scen, shared_data, tmp_path):
    wikibio = shared_data / "wikibio"
    for name, source in (("e", "wikibio-test-all"), ("a", "hall_accurates"), ("o", "hall_open_webtext")):
        few = json.loads((wikibio / f"{source}.json").read_text())[:4]
        (tmp_path / f"{name}.json").write_text(json.dumps(few))
    at = ("--dir", tmp_path / "p")
    rates = ("--recipe", "paper", "--set", "expert_lr=0.01", "--set", "neuron_lr=0.001")
    scen("init", "--model", shared_data / "stories260K", "--layer", "3", *rates, *at)
    files = ("--data", tmp_path / "e.json", "--accurate", tmp_path / "a.json", "--openwebtext", tmp_path / "o.json")
    rows = json.loads(scen("study", "hallucination", *files, "--edits", "3", *at, "--json").stdout)["rows"]
    figures = {row["text"]: row for row in rows}
    assert (figures["wikibio-e"]["samples"], figures["wikibio-a"]["samples"]) == (3, 4)
    assert figures["wikibio-e-given-expert"]["patched"] < figures["wikibio-e"]["base"] / 3
    [folder] = (tmp_path / "p" / "studies" / "projects").glob("hallucination-3-*/hallucination")
    settings = Project(folder).settings
    assert (settings["template"], settings["recipe"]["neuron_steps"], settings["recipe"]["theta"]) == ("none", 30, 0.6)
