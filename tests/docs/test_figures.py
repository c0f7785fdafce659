"""The tables of the benchmarks pages equal the recorded results."""

from __future__ import annotations

import csv
import json
import re
import sys

import pytest

from scen_cli.data.suites import load_suite
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.model.known_bases import DEMO
from tests.conftest import edit_all
from tests.docs.pages import DOCS, ROOT, read

QUALITY = DOCS / "benchmarks" / "quality.md"
TABLES = (
    "real/figures real/behaviour real/false_activation real/scope real/batch_difference "
    "recipes edit_speed first_edit inference_speed expert_sweep-demo expert_sweep-zsre many_edits growth routing_scale "
    "cost_model edit_rate compare/demo-100 compare/demo-500 compare/zsre-100 tuned/demo-100 tuned/zsre-100 "
    "shipping/export_equality shipping/merged_edits shipping/export_memory shipping/compatibility shipping/serve_load "
    "shipping/quantized_bases"
).split()


@pytest.mark.slow
def test_table_of_recipes_has_what_the_default_recipe_gives(make_editor):
    """Within one in a hundred: another processor rounds differently, so a near tie can have another winner. (The whole
    table: `python -m benchmarks.recipes`.)"""
    cell = r"[\d.]+ % \((\d+)/(\d+)\)"
    rows = re.findall(rf"^\| `([a-z-]+)` \| {cell} \| {cell} \| {cell} \| {cell} \|$", read(QUALITY), re.MULTILINE)
    assert [row[0] for row in rows] == ["closed-form", "joint", "key", "paper"]
    suite, (recipe, *counts) = load_suite("demo"), rows[0]
    editor = make_editor(recipe)
    edit_all(editor, suite.edits[:100])
    figures = evaluate(editor, suite, quick=True).figures
    shares = [figures[name].patched for name in ("reliability", "generality", "locality")]
    shares.append(figures["locality"].fired)
    for share, right, total in zip(shares, counts[::2], counts[1::2], strict=True):
        assert share.total == int(total)
        assert abs(share.right - int(right)) <= share.total / 100


def test_pages_hold_what_the_benchmarks_wrote():
    """`python -m benchmarks.page` fills them from `benchmarks/{speed,compare,shipping}/*.json`."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.page import PAGES, filled

    shown = []
    for page in PAGES:
        text = read(page)
        assert text == filled(text), page
        shown += re.findall(r"<!-- table: (\S+) -->\n\n\|", text)
    assert sorted(shown) == sorted(TABLES)


def test_tables_of_studies_equal_the_results():
    """`benchmarks/studies.sh` writes the files."""
    folder, page = ROOT / "benchmarks" / "studies", read(QUALITY)

    def rows(name):
        with (folder / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    roles = ("reliability", "generality", "locality")
    line = r"^\| (?:expert at|neuron:|two edits|four edits).*?\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| [\d. /]+ \|$"
    shown = re.findall(line, page, re.MULTILINE)
    tables = rows("table3")[:5] + rows("table4")[1:]
    measured = [tuple(f"{100 * float(row[role]):.1f}" for role in roles) for row in tables]
    assert shown == measured

    share = r"([\d.]+) \((\d+)/\d+\)"
    line = rf"^\| (ZsRE|CounterFact) \| `([\w-]+)` \| {share} \| {share} \| ([\d.]+) \| {share} \|$"
    real = re.findall(line, page, re.MULTILINE)
    assert len(real) == 9
    columns = ("reliability", "generality", "generality_given_expert", "locality")
    for suite, recipe, reliability, right, generality, _right, given, locality, _kept in real:
        [row] = rows(f"{suite.lower()}-{recipe}")
        assert [reliability, generality, given, locality] == [f"{100 * float(row[name]):.1f}" for name in columns]
        assert int(right) == round(float(row["reliability"]) * int(row["reliability_of"]))


def test_table_of_routing_equals_the_results():
    """`benchmarks/routing.sh` writes the files; the page shows some of the rows."""
    names = {
        "demo": "demo",
        "demo, tuned on ZsRE": "zsre",
        "demo, tuned on CounterFact": "counterfact",
        "the same, `key_pooling=mean`": "counterfact",
    }
    lines = re.findall(rf"^\| ({'|'.join(map(re.escape, names))}) \| (\d+) \| (.*) \|$", read(QUALITY), re.MULTILINE)
    assert len(lines) == 5
    for base, edits, cells in lines:
        file = f"{names[base]}-{edits}" if edits == "10000" else names[base]
        rows = json.loads((ROOT / "benchmarks" / "routing" / f"{file}.json").read_text())
        share = {r["router"]: 100 * r["at 1% same_kind"]["rephrases"] for r in rows if r["edits"] == int(edits)}
        pool = "/mean" if "mean" in base else ""
        wanted = [f"key (cosine){pool}", f"closed-form{pool}", f"closed-form, second look{pool}"]
        papers = [f"{found:.1f}" for name, found in share.items() if name.startswith("paper") and not pool] or ["-"]
        assert cells.split(" | ") == papers + [f"{share[name]:.1f}" for name in wanted]


def test_figures_of_the_training_script_stand_in_the_changelog():
    recorded = json.loads((DEMO / "training.json").read_text())
    changelog = read(ROOT / "CHANGELOG.md")
    assert f"{recorded['parameters']:,} parameters" in changelog
    assert f"({recorded['seconds']} s," in changelog
