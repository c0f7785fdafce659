"""Batched losses and distributions equal a plain loop over single texts."""

from __future__ import annotations

from math import exp

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.evaluation import teacher_forced
from scen_cli.evaluation.hallucination import perplexities
from scen_cli.evaluation.teacher_forced import Text, next_token_kl, score
from scen_cli.model.base import load_base
from tests.evaluation.plain_loop import losses_of
from tests.model.tiny import DENSE, save_tiny


def texts_of(editor, count=30):
    texts = []
    for fact in right_facts()[:count]:
        prompt = editor.template.prompt_ids(fact.phrasings[0])
        ids = prompt + editor.template.target_ids(fact.phrasings[0], fact.answer)
        texts.append(Text(ids, len(ids) - 3 - len(texts) % 3))
    return texts


@pytest.mark.parametrize("max_logits", [1 << 26, 1 << 17, 1], ids=["large", "middle", "single"])
def test_perplexities_equal_a_plain_loop(edited, monkeypatch, max_logits):
    monkeypatch.setattr(teacher_forced, "MAX_LOGITS", max_logits)
    texts = texts_of(edited)
    edits = [None if n % 3 else 1 + n % 5 for n in range(len(texts))]
    expected = [losses_of(edited, t.ids, t.scored, e) for t, e in zip(texts, edits, strict=True)]
    for found, losses in zip(perplexities(edited, texts, edits), expected, strict=True):
        assert found == pytest.approx(exp(sum(losses) / len(losses)), abs=1e-4, rel=1e-4)
    assert len({round(sum(losses), 3) for losses in expected}) > 20  # the texts differ


def test_likeliest_tokens_are_those_of_greedy_generation(edited):
    facts = right_facts()[:10]
    texts = []
    for fact in facts:
        target = edited.template.target_ids(fact.phrasings[0], fact.answer)
        texts.append(Text(edited.template.prompt_ids(fact.phrasings[0]) + target, len(target)))
    assert all(all(found.likeliest) for found in score(edited, texts, [None] * 10))
    wrong = [Text([*text.ids[:-1], text.ids[0]], text.scored) for text in texts]
    assert all(not found.likeliest[-1] for found in score(edited, wrong, [None] * 10))


def test_next_token_kl_equals_its_definition(edited):
    prompts = [record.prompt for record in demo_edits()[:3]] + [right_facts()[0].phrasings[0]]
    found = next_token_kl(edited, prompts, [1, None, 2, None])
    assert found[1] == found[3] == 0.0
    for row, edit in ((0, 1), (2, 2)):
        ids = edited.template.prompt_ids(prompts[row])
        weight = edited.edited.down_proj.weight
        before = weight.detach().clone()
        with torch.no_grad():
            base = edited.model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
            weight.copy_(torch.from_numpy(edited.project.expert(edit)))
            patched = edited.model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
            weight.copy_(before)
        expected = (base * (base / patched).log()).sum().item()
        assert found[row] == pytest.approx(expected, rel=1e-3)
        assert expected > 0.01


def test_padding_shifts_no_position(tmp_path):
    """GPT-2 has absolute positions: a row must count from its own first token."""
    base = load_base(str(save_tiny(tmp_path / "base", *DENSE["gpt2"])), device="cpu")
    model = PatchedModel(
        new_project(tmp_path / "p", str(tmp_path / "base"), layer=1, recipe="key", base=base), base=base
    )
    texts = [Text(list(range(5, 5 + length)), length - 1) for length in (4, 9, 30)]
    for text, found in zip(texts, perplexities(model, texts, [None] * 3), strict=True):
        with torch.no_grad():
            likelihoods = base.model(input_ids=torch.tensor([text.ids])).logits[0].double().log_softmax(dim=-1)
        losses = [-likelihoods[i - 1, text.ids[i]].item() for i in range(1, len(text.ids))]
        assert found == pytest.approx(exp(sum(losses) / len(losses)), rel=1e-4)
