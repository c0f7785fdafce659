"""Perplexities of the Hallucination suite equal a plain loop over its texts."""

from __future__ import annotations

from math import exp

import pytest

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Passages, Suite, demo_edits, load_passages
from scen_cli.demo.world import right_facts
from scen_cli.errors import UsageError
from scen_cli.evaluation.hallucination import evaluate_perplexity, with_continuation
from scen_cli.evaluation.teacher_forced import score
from tests.evaluation.plain_loop import losses_of


def test_figures_are_means_of_a_plain_loop(edited):
    records = demo_edits()[:4]
    accurate = [EditRecord(prompt=fact.phrasings[0], target=fact.answer) for fact in right_facts()[:5]]
    plain = [f"{fact.phrasings[0]} {fact.phrasings[1]}" for fact in right_facts()[5:8]]
    found = evaluate_perplexity(edited, Passages(Suite("x", records, []), accurate, plain))
    assert set(found.figures) == {"wikibio-e", "wikibio-a", "openwebtext", "wikibio-e-given-expert"}

    def mean_perplexity(samples, edit):
        values = []
        for prompt, target in samples:
            ids = edited.template.prompt_ids(prompt)
            scored = edited.template.target_ids(prompt, target)[:-1] if target else ids[1:]
            ids = ids + scored if target else ids
            routed = edited.route([prompt]).edits[0] if edit == "routed" else edit
            losses = losses_of(edited, ids, len(scored), routed)
            values.append(exp(sum(losses) / len(losses)))
        return sum(values) / len(values)

    groups = {
        "wikibio-e": [(record.prompt, record.target) for record in records],
        "wikibio-a": [(record.prompt, record.target) for record in accurate],
        "openwebtext": [(text, None) for text in plain],
    }
    for name, samples in groups.items():
        assert found.figures[name].patched.mean == pytest.approx(mean_perplexity(samples, "routed"), rel=1e-4)
        assert found.figures[name].base.mean == pytest.approx(mean_perplexity(samples, None), rel=1e-4)
        assert found.figures[name].patched.total == len(samples)
    assert found.figures["wikibio-e"].fired.share == 1.0
    assert found.figures["wikibio-e"].patched.mean < 1.2 < found.figures["wikibio-e"].base.mean


def test_texts_longer_than_the_context_are_cut_and_counted(edited):
    long = " ".join(fact.phrasings[0] for fact in right_facts()[:200])
    records = demo_edits()[:1]
    accurate = [EditRecord(prompt=long, target="Riga")]
    found = evaluate_perplexity(edited, Passages(Suite("x", records, []), accurate, [long, "A short one."]))
    assert found.curves["cut"] == {"wikibio-e": 0, "wikibio-a": 1, "openwebtext": 1}
    assert found.figures["openwebtext"].patched.total == 2
    [losses] = score(edited, [with_continuation(edited.template, edited.context, accurate[0]).text], [None])
    target = edited.template.target_ids(long, "Riga")[:-1]
    ids = edited.template.prompt_ids(long)[-(edited.context - len(target)) :] + target  # the end of the passage is kept
    assert losses.losses == pytest.approx(losses_of(edited, ids, len(target), None), rel=1e-3)


def test_the_published_files_load(shared_data):
    files = shared_data / "wikibio"
    passages = load_passages(
        files / "wikibio-test-all.json", files / "hall_accurates.json", files / "hall_open_webtext.json"
    )
    assert (len(passages.edits.edits), len(passages.accurate), len(passages.openwebtext)) == (306, 516, 200)
    with pytest.raises(UsageError, match="none of the known forms"):
        load_passages(files / "wikibio-test-all.json", files / "hall_open_webtext.json", None)
