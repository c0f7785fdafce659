"""Low-rank experts, training batches, and when training stops."""

from __future__ import annotations

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.errors import UsageError
from scen_cli.experts.expert_parameters import LowRankExperts
from scen_cli.experts.fit import ExpertTask, TrainingBatch, fit_experts
from scen_cli.experts.fit_records import further_training_prompts
from scen_cli.experts.prefix_cache import record_prefix
from scen_cli.model.expert_stack import LowRank
from scen_cli.neurons.neuron_fit import HARD_NEGATIVES, hard_negatives
from scen_cli.recipe import RECIPES, make_recipe
from tests.conftest import edit_all


def tasks_of(editor, count: int) -> list[ExpertTask]:
    return [
        ExpertTask(
            [editor.tokenize_edit(record)],
            [
                editor.tokenize_pair(prompt, record.target)
                for prompt in further_training_prompts(editor, record, editor.recipe.prompt_augmentations)
            ],
        )
        for record in demo_edits()[:count]
    ]


def delta(expert: LowRank) -> torch.Tensor:
    return expert.b @ expert.a


@pytest.mark.parametrize("expert", ["low-rank", "full"])
def test_a_batch_of_tasks_gives_the_same_as_each_task_alone(make_editor, expert, monkeypatch):
    """Tasks have different lengths and numbers of samples, so most rows are padded. Float16 rounding is off: it could
    turn a difference in the seventh digit into a larger one."""
    monkeypatch.setattr("scen_cli.experts.expert_parameters._rounded", lambda tensor: tensor)
    editor = make_editor("closed-form")
    recipe = editor.recipe.model_copy(update={"expert": expert, "expert_lr": 1e-2, "expert_steps": 10})
    tasks = tasks_of(editor, 5)
    tasks[1] = ExpertTask(tasks[1].samples)
    together = fit_experts(editor.model, editor.edited, tasks, recipe)
    for task, fit in zip(tasks, together, strict=True):
        [alone] = fit_experts(editor.model, editor.edited, [task], recipe)
        assert fit.wrong_tokens == alone.wrong_tokens
        assert fit.losses == pytest.approx(alone.losses, abs=1e-5)
        if expert == "low-rank":
            assert (delta(fit.expert) - delta(alone.expert)).abs().max() < 1e-4
            assert delta(alone.expert).abs().max() > 1


def test_editing_in_batches_gives_the_same_as_one_at_a_time(make_editor):
    from scen_cli.data.entries import Entry
    from scen_cli.data.records import SourceLine

    records, rows = demo_edits()[:5], []
    for size in (1, 3):
        editor = make_editor("closed-form")
        planned = editor.plan([Entry(SourceLine("test", n), record) for n, record in enumerate(records)])
        with editor.project.writing():
            made = list(editor.train(planned, size))
            editor.project.merge()
        assert [outcome.edit for outcomes in made for outcome in outcomes.values()] == [1, 2, 3, 4, 5]
        rows.append((editor.project.w_merge().neurons, [editor.project.expert(edit) for edit in range(1, 6)]))
        assert editor.answer([record.prompt for record in records]).texts == [record.target for record in records]
    (neurons, alone), (same, together) = rows
    assert (neurons == same).all()
    for single, batched in zip(alone, together, strict=True):
        first, second = (expert.lora_B.astype("f4") @ expert.lora_A for expert in (single, batched))
        assert abs(first - second).max() < 2**-10 * abs(first).max()


def test_a_task_that_finishes_early_does_not_change_the_others(make_editor, monkeypatch):
    """Rows, parameters and Adam's state of the others stay in the batch."""
    monkeypatch.setattr("scen_cli.experts.expert_parameters._rounded", lambda tensor: tensor)
    editor = make_editor("closed-form")
    recipe = editor.recipe.model_copy(
        update={"stop_when": "learned", "logit_margin": 1.0, "rank": 4, "low_rank_lr": 0.05}
    )
    tasks = tasks_of(editor, 6)
    together = fit_experts(editor.model, editor.edited, tasks, recipe)
    steps = [len(fit.losses) for fit in together]
    assert len(set(steps)) > 1
    for task, fit in zip(tasks, together, strict=True):
        [alone] = fit_experts(editor.model, editor.edited, [task], recipe)
        assert len(alone.losses) == len(fit.losses)
        assert alone.losses == pytest.approx(fit.losses, abs=1e-5)
        assert alone.logit_margin == pytest.approx(fit.logit_margin, abs=1e-4)
        assert alone.logit_margin >= 1.0
        assert len(alone.losses) < recipe.expert_steps + recipe.extra_steps


def test_the_stored_expert_as_a_dense_matrix_gives_the_target(make_editor):
    """B A, rounded to float16, gave the last logits of training."""
    editor = make_editor("closed-form")
    tasks = tasks_of(editor, 2)
    fits = fit_experts(editor.model, editor.edited, tasks, editor.recipe)
    weight = editor.edited.projection.weight
    before = weight.detach().clone()
    for task, fit in zip(tasks, fits, strict=True):
        assert torch.equal(fit.expert.a, fit.expert.a.half().float())
        assert torch.equal(fit.expert.b, fit.expert.b.half().float())
        sample = task.samples[0]
        weight.data = before + delta(fit.expert)
        logits = editor.model(input_ids=torch.tensor([sample.input_ids])).logits[0]
        weight.data = before
        predicted = logits[-sample.target_length - 1 : -1].argmax(dim=1).tolist()
        assert predicted == sample.input_ids[-sample.target_length :]


def test_rank_auto_is_the_smallest_rank_that_reaches_the_margin(make_editor):
    editor = make_editor("closed-form")
    tasks = tasks_of(editor, 4)
    recipe = editor.recipe.model_copy(update={"rank": "auto", "expert_steps": 6, "logit_margin": 2.0})
    fits = fit_experts(editor.model, editor.edited, tasks, recipe)
    ranks = [len(fit.expert.a) for fit in fits]
    assert ranks[0] in (4, 8, 16)
    for task, fit, rank in zip(tasks, fits, ranks, strict=True):
        assert fit.logit_margin >= 2.0
        if rank > 4:
            smaller = recipe.model_copy(update={"rank": rank // 2, "extra_steps": 0})
            assert fit_experts(editor.model, editor.edited, [task], smaller)[0].logit_margin < 2.0


def test_low_rank_experts_start_with_the_main_axes_of_the_inputs_and_b_zero(make_editor):
    editor = make_editor("closed-form")
    batch = TrainingBatch.from_tasks(tasks_of(editor, 1), torch.device("cpu"))
    prefix = record_prefix(editor.model, editor.edited, batch.input_ids)
    experts = LowRankExperts(prefix, batch.real, 96, 8, 0.1)
    inputs = prefix.inputs[batch.real[0]]
    first = torch.ones(len(inputs), dtype=torch.bool)
    first[torch.tensor([0, *batch.real[0].sum(1).cumsum(0)[:-1].tolist()])] = False
    axes = torch.linalg.svd(inputs[first], full_matrices=False).Vh[:8]
    initial = torch.nn.functional.normalize(experts.expert(0).a, dim=1)
    assert ((axes * initial).sum(1).abs() - 1).abs().max() < 1e-3
    assert not experts.expert(0).b.any()


def test_an_edit_with_fewer_tokens_than_ranks_trains(make_editor):
    editor = make_editor("key", expert="low-rank", rank=64, extra_steps=60)
    [edit] = edit_all(editor, demo_edits()[:1])
    assert edit.state == "active"
    assert edit.rank == 64


def test_hard_negatives_are_the_nearest():
    torch.manual_seed(0)
    keys, negatives = torch.randn(2, 8), torch.randn(HARD_NEGATIVES + 100, 8)
    assert torch.equal(hard_negatives(keys, negatives[:HARD_NEGATIVES]), negatives[:HARD_NEGATIVES])
    found = hard_negatives(keys, negatives)
    products = (negatives @ keys.T).amax(1)
    assert len(found) == HARD_NEGATIVES
    assert (found @ keys.T).amax(1).min() >= products.sort(descending=True).values[HARD_NEGATIVES - 1]


@pytest.mark.parametrize(
    ("recipe", "changes", "hint"),
    [
        ("closed-form", {"expert_lr": "0.01"}, "--expert full"),
        ("paper", {"low_rank_lr": "0.01"}, "--expert low-rank"),
        ("paper", {"rank": "4"}, "full experts have none"),
        ("closed-form", {"logit_margin": "1"}, "--stop-when learned"),
        ("closed-form", {"neuron_steps": "5"}, "`paper` and `joint`"),
    ],
)
def test_a_setting_without_effect_is_rejected(recipe, changes, hint):
    with pytest.raises(UsageError, match="has no effect in recipe") as error:
        make_recipe(recipe, changes)
    assert hint in error.value.hint


def test_the_paper_recipe_trains_full_experts_for_ten_steps():
    paper = RECIPES["paper"]
    assert (paper.expert, paper.stop_when, paper.expert_steps, paper.extra_steps) == ("full", "steps", 10, 0)
