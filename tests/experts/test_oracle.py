"""The product against a literal implementation of the paper: the same experts, neurons and routes, to 1e-5."""

from __future__ import annotations

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.editing.editor import FROM_LIBRARY
from tests.conftest import edit_all
from tests.experts.oracle import Oracle

EDITS = 10
TOLERANCE = 1e-5


@pytest.mark.slow
def test_experts_neurons_and_routes_equal_the_oracle(make_editor, demo_base):
    editor = make_editor("paper")
    records = demo_edits()[:EDITS]
    rows = edit_all(editor, records)
    assert [row.state for row in rows] == ["active"] * EDITS

    recipe = editor.recipe.model_dump()
    oracle = Oracle(demo_base.model, editor.edited.index, recipe.pop("theta"), **recipe)
    prompts = [torch.tensor(editor.template.prompt_ids(record.prompt)) for record in records]
    for prompt, record, row in zip(prompts, records, rows, strict=True):
        width = editor.project.settings["ffn_width"] ** -0.5
        generator = torch.Generator().manual_seed(row.seed)
        first = torch.empty(editor.project.settings["ffn_width"]).uniform_(-width, width, generator=generator)
        target = torch.tensor(editor.template.target_ids(record.prompt, record.target))
        oracle.edit([prompt], [target], first)

    merged = editor.project.w_merge()
    for position, row in enumerate(rows):
        expert = torch.from_numpy(editor.project.expert(row.id))
        assert (expert - oracle.experts[position]).abs().max() < TOLERANCE
        moved = (oracle.experts[position] - oracle.base).abs().max()
        assert moved > 1000 * TOLERANCE  # so the comparison means something
        neuron = torch.from_numpy(merged.neurons[position])
        assert (neuron - oracle.neurons[position]).abs().max() < TOLERANCE

    rephrases = [record.rephrases[0] for record in records]
    others = [fact.phrasings[0] for fact in right_facts()[:10]]
    queries = [record.prompt for record in records] + rephrases + others
    route = editor.route(queries)
    chosen = []
    for position, text in enumerate(queries):
        choice, activations = oracle.route(torch.tensor(editor.template.prompt_ids(text)))
        assert (activations - route.activations[position]).abs().max() < TOLERANCE
        assert (None if choice < 0 else rows[choice].id) == route.edits[position]
        chosen.append(choice)
    assert chosen[:EDITS] == list(range(EDITS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target_module", "changes"),
    [
        ("up", {}),
        ("attn", {}),
        ("down", {"disactivate": False, "margin": False}),
        ("down", {"margin": False}),
        ("down", {"edits_per_expert": 2}),
    ],
)
def test_ablations_equal_the_oracle(make_editor, demo_base, target_module, changes):
    """Tables 3 and 4: other target modules, omitted losses, two edits per expert."""
    editor = make_editor("paper", target_module=target_module, require_learned=False, **changes)
    size = editor.recipe.edits_per_expert
    records = demo_edits()[:4]
    with editor.project.writing():
        groups = [[(record, FROM_LIBRARY) for record in records[at : at + size]] for at in range(0, 4, size)]
        rows = [edit for group in groups for edit in editor.edit_group(group)]
        editor.project.merge()
    assert [row.state for row in rows] == ["active"] * 4
    assert [row.expert for row in rows] == ([1, 2, 3, 4] if size == 1 else [1, 1, 3, 3])

    module = {"up": "mlp.up_proj", "attn": "self_attn.o_proj", "down": "mlp.down_proj"}[target_module]
    recipe = editor.recipe.model_dump()
    oracle = Oracle(demo_base.model, editor.edited.index, recipe.pop("theta"), module, **recipe)
    for group in groups:
        prompts = [torch.tensor(editor.template.prompt_ids(record.prompt)) for record, _ in group]
        targets = [torch.tensor(editor.template.target_ids(record.prompt, record.target)) for record, _ in group]
        row = next(row for row in rows if row.prompt == group[0][0].prompt)
        width = editor.project.settings["ffn_width"] ** -0.5
        generator = torch.Generator().manual_seed(row.seed)
        first = torch.empty(editor.project.settings["ffn_width"]).uniform_(-width, width, generator=generator)
        oracle.edit(prompts, targets, first)
    merged = editor.project.w_merge()
    assert merged.experts == sorted({row.expert for row in rows})
    for row_of_merge, expert in enumerate(merged.experts):
        ours = torch.from_numpy(editor.project.expert(expert))
        assert (ours - oracle.experts[row_of_merge]).abs().max() < TOLERANCE
        assert (ours - oracle.base).abs().max() > 1000 * TOLERANCE
        neuron = torch.from_numpy(merged.neurons[row_of_merge])
        assert (neuron - oracle.neurons[row_of_merge]).abs().max() < TOLERANCE
