"""Losses and distributions against a plain loop that takes one sample at a time."""

from __future__ import annotations

from math import exp

import pytest
import torch

from scen_cli.data.passages import Passages, load_passages
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.demo.facts import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import UsageError
from scen_cli.evaluation import teacher_forced
from scen_cli.evaluation.hallucination import continued, evaluate_perplexity, perplexities
from scen_cli.evaluation.teacher_forced import Text, next_token_kl, score
from scen_cli.model.base import load_base
from tests.model.tiny import DENSE, save_tiny


def texts_of(editor, count=30):
    texts = []
    for fact in right_facts()[:count]:
        prompt = editor.template.prompt_ids(fact.phrasings[0])
        ids = prompt + editor.template.target_ids(fact.phrasings[0], fact.answer)
        texts.append(Text(ids, len(ids) - 3 - len(texts) % 3))
    return texts


def one_at_a_time(editor, ids, scored, edit):
    """Cross-entropy by hand: the whole model, no padding, the weight itself replaced by the expert."""
    weight = editor.edited.down_proj.weight
    before = weight.detach().clone()
    if edit is not None:
        weight.copy_(torch.from_numpy(editor.project.expert(edit)))
    with torch.no_grad():
        logits = editor.model(input_ids=torch.tensor([ids])).logits[0].double()
    weight.copy_(before)
    likelihoods = logits.log_softmax(dim=-1)
    return [-likelihoods[place - 1, ids[place]].item() for place in range(len(ids) - scored, len(ids))]


@pytest.mark.parametrize("at_once", [1 << 26, 1 << 17, 1])
def test_perplexities_equal_a_plain_loop(edited, monkeypatch, at_once):
    monkeypatch.setattr(teacher_forced, "LOGITS_AT_ONCE", at_once)  # large, middling and single batches
    texts = texts_of(edited)
    edits = [None if n % 3 else 1 + n % 5 for n in range(len(texts))]
    by_hand = [one_at_a_time(edited, t.ids, t.scored, e) for t, e in zip(texts, edits, strict=True)]
    for found, losses in zip(perplexities(edited, texts, edits), by_hand, strict=True):
        assert found == pytest.approx(exp(sum(losses) / len(losses)), abs=1e-4, rel=1e-4)
    assert len({round(sum(losses), 3) for losses in by_hand}) > 20  # so that agreeing says something


def test_likeliest_tokens_are_the_greedy_ones(edited):
    facts = right_facts()[:10]
    texts = []
    for fact in facts:
        target = edited.template.target_ids(fact.phrasings[0], fact.answer)
        texts.append(Text(edited.template.prompt_ids(fact.phrasings[0]) + target, len(target)))
    assert all(all(found.likeliest) for found in score(edited, texts, [None] * 10))
    wrong = [Text([*text.ids[:-1], text.ids[0]], text.scored) for text in texts]
    assert all(not found.likeliest[-1] for found in score(edited, wrong, [None] * 10))


def test_divergence_of_the_next_token_by_hand(edited):
    prompts = [record.prompt for record in demo_edits()[:3]] + [right_facts()[0].phrasings[0]]
    found = next_token_kl(edited, prompts, [1, None, 2, None])
    assert found[1] == found[3] == 0.0
    for place, edit in ((0, 1), (2, 2)):
        ids = edited.template.prompt_ids(prompts[place])
        weight = edited.edited.down_proj.weight
        before = weight.detach().clone()
        with torch.no_grad():
            base = edited.model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
            weight.copy_(torch.from_numpy(edited.project.expert(edit)))
            patched = edited.model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
            weight.copy_(before)
        by_hand = (base * (base / patched).log()).sum().item()
        assert found[place] == pytest.approx(by_hand, rel=1e-3)
        assert by_hand > 0.01


def test_padding_moves_no_position(tmp_path):
    """GPT-2 knows positions by number: a row padded on the left must count from its own first token."""
    base = load_base(str(save_tiny(tmp_path / "base", *DENSE["gpt2"])), device="cpu")
    model = PatchedModel(
        new_project(tmp_path / "p", str(tmp_path / "base"), layer=1, recipe="key", base=base), base=base
    )
    texts = [Text(list(range(5, 5 + length)), length - 1) for length in (4, 9, 30)]
    for text, found in zip(texts, perplexities(model, texts, [None] * 3), strict=True):
        with torch.no_grad():
            likelihoods = base.model(input_ids=torch.tensor([text.ids])).logits[0].double().log_softmax(dim=-1)
        losses = [-likelihoods[at - 1, text.ids[at]].item() for at in range(1, len(text.ids))]
        assert found == pytest.approx(exp(sum(losses) / len(losses)), rel=1e-4)


class TestHallucination:
    def test_figures_of_the_suite_are_means_of_a_plain_loop(self, edited):
        records = demo_edits()[:4]
        accurate = [EditRecord(prompt=fact.phrasings[0], target=fact.answer) for fact in right_facts()[:5]]
        plain = [f"{fact.phrasings[0]} {fact.phrasings[1]}" for fact in right_facts()[5:8]]
        found = evaluate_perplexity(edited, Passages(Suite("x", records, []), accurate, plain))
        assert set(found.figures) == {"wikibio-e", "wikibio-a", "openwebtext", "wikibio-e-given-expert"}

        def loop(samples, edit):
            values = []
            for prompt, target in samples:
                ids = edited.template.prompt_ids(prompt)
                scored = edited.template.target_ids(prompt, target)[:-1] if target else ids[1:]
                ids = ids + scored if target else ids
                routed = edited.route([prompt]).edits[0] if edit == "routed" else edit
                losses = one_at_a_time(edited, ids, len(scored), routed)
                values.append(exp(sum(losses) / len(losses)))
            return sum(values) / len(values)

        groups = {
            "wikibio-e": [(record.prompt, record.target) for record in records],
            "wikibio-a": [(record.prompt, record.target) for record in accurate],
            "openwebtext": [(text, None) for text in plain],
        }
        for name, samples in groups.items():
            assert found.figures[name].patched.mean == pytest.approx(loop(samples, "routed"), rel=1e-4)
            assert found.figures[name].base.mean == pytest.approx(loop(samples, None), rel=1e-4)
            assert found.figures[name].patched.total == len(samples)
        assert found.figures["wikibio-e"].fired.share == 1.0
        assert found.figures["wikibio-e"].patched.mean < 1.2 < found.figures["wikibio-e"].base.mean

    def test_texts_beyond_the_context_are_cut_and_counted(self, edited):
        long = " ".join(fact.phrasings[0] for fact in right_facts()[:200])
        records = demo_edits()[:1]
        accurate = [EditRecord(prompt=long, target="Riga")]
        found = evaluate_perplexity(edited, Passages(Suite("x", records, []), accurate, [long, "A short one."]))
        assert found.curves["cut"] == {"wikibio-e": 0, "wikibio-a": 1, "openwebtext": 1}
        assert found.figures["openwebtext"].patched.total == 2
        [losses] = score(edited, [continued(edited.template, edited.context, accurate[0]).text], [None])
        target = edited.template.target_ids(long, "Riga")[:-1]
        ids = edited.template.prompt_ids(long)[-(edited.context - len(target)) :] + target  # its end, not its start
        assert losses.losses == pytest.approx(one_at_a_time(edited, ids, len(target), None), rel=1e-3)

    def test_the_real_files_load(self, shared_data):
        files = shared_data / "wikibio"
        passages = load_passages(
            files / "wikibio-test-all.json", files / "hall_accurates.json", files / "hall_open_webtext.json"
        )
        assert (len(passages.edits.edits), len(passages.accurate), len(passages.openwebtext)) == (306, 516, 200)
        with pytest.raises(UsageError, match="none of the known forms"):
            load_passages(files / "wikibio-test-all.json", files / "hall_open_webtext.json", None)
