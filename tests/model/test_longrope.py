"""Position embeddings that depend on the longest sequence of a batch: a prompt has the same route and answer in any."""

from __future__ import annotations

import asyncio

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config

from scen_cli.data.records import EditRecord
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.evaluation.teacher_forced import Text, next_token_kl, score
from scen_cli.experts.fit import ExpertTask, fit_experts
from scen_cli.model.base import load_base
from scen_cli.model.keys import rope_boundary
from scen_cli.model.known_bases import DEMO
from scen_cli.serving.batch_runners import BatchGenerator
from scen_cli.serving.request_queue import GenerationRequest, SamplingParams

SHORT, OTHER = "What does Velmora make?", "Where was Ada born?"
LONG = "The mill stood by the river for many years and nobody knew who had built it or why it was there. Where is Otto?"


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    """A tiny Phi-3 whose context changes at 32 tokens, with two edits."""
    folder = tmp_path_factory.mktemp("longrope")
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    sizes = {"vocab_size": 800, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    lengths = {"max_position_embeddings": 256, "original_max_position_embeddings": 32}
    torch.manual_seed(0)
    config = Phi3Config(**sizes, **heads, **ends, **lengths, rope_parameters=rope, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder / "base")
    base = load_base(str(folder / "base"), device="cpu")
    changes = {"theta": 0.97, "expert": "low-rank", "expert_steps": 60, "low_rank_lr": 0.1}
    project = new_project(folder / "p", str(folder / "base"), layer=1, recipe="key", changes=changes, base=base)
    editor = Editor(project, base=base)
    with project.writing():
        editor.edit(EditRecord(prompt=OTHER, target="Riga"))
        editor.edit(EditRecord(prompt=SHORT, target="candles and ink"))
    yield editor
    editor.detach()


def test_the_boundary_is_read_from_the_config(editor, demo_base):
    assert rope_boundary(editor.model) == 32
    assert rope_boundary(demo_base.model) is None


def test_a_long_prompt_changes_neither_route_nor_answer_of_others(editor):
    batch = [SHORT, LONG, OTHER, f"{LONG} {LONG}"]
    assert editor.route(batch).edits == [editor.route([prompt]).edits[0] for prompt in batch]
    assert editor.route(batch).edits[0] == 2
    together, alone = editor.answer(batch), [editor.answer([prompt]) for prompt in batch]
    assert together.edits == [answer.edits[0] for answer in alone]
    assert together.tokens == [answer.tokens[0] for answer in alone]
    assert together.texts[0] == "candles and ink"


def test_keys_of_a_batch_are_those_of_each_prompt_alone(editor):
    batch = [SHORT, LONG, OTHER]
    alone = torch.cat([editor.keys([prompt]) for prompt in batch])
    assert torch.allclose(editor.route(batch).activations, torch.cat([editor.route([p]).activations for p in batch]))
    assert torch.allclose(editor.keys(batch), alone, atol=1e-5)


def test_a_server_answers_each_request_as_if_it_were_alone(editor):
    """Also beside one whose prompt is short, but whose answer makes it cross the boundary."""
    rows = editor.prompt_ids([SHORT, LONG, OTHER, "Who is Otto?"])
    lengths = [8, 8, 8, 40]

    async def events_of(request) -> list:
        return [event async for event in request.events()]

    async def serve(batches) -> list:
        requests = [GenerationRequest(*each, 128, SamplingParams()) for each in zip(rows, lengths, strict=True)]
        for batch in batches:
            BatchGenerator(editor, lambda *_counts: None)([requests[i] for i in batch])
        return [await events_of(request) for request in requests]

    alone = asyncio.run(serve([[0], [1], [2], [3]]))
    assert [alone[i][0].edit for i in range(3)] == [2, None, 1]
    assert len(alone[3]) > 32 - len(rows[3])
    assert asyncio.run(serve([[0, 1, 2, 3]])) == alone
    assert asyncio.run(serve([[0, 3], [1, 2]])) == alone


def test_scores_of_a_text_are_those_of_the_text_alone(editor):
    ids = editor.prompt_ids([SHORT, LONG])
    together = score(editor, [Text(row, 4) for row in ids], [2, None])
    alone = [score(editor, [Text(row, 4)], [edit])[0] for row, edit in zip(ids, [2, None], strict=True)]
    assert [scores.losses for scores in together] == [pytest.approx(scores.losses, abs=1e-4) for scores in alone]
    drift = next_token_kl(editor, [SHORT, LONG], [2, 2])
    assert drift == pytest.approx([next_token_kl(editor, [prompt], [2])[0] for prompt in (SHORT, LONG)], rel=1e-3)


def test_an_expert_is_what_its_task_alone_gives(editor):
    tasks = [ExpertTask([editor.tokenize_pair(prompt, "Riga")]) for prompt in (LONG, SHORT, OTHER)]
    recipe = editor.recipe.model_copy(update={"expert_steps": 5, "extra_steps": 0})
    together = fit_experts(editor.model, editor.edited, tasks, recipe)
    alone = [fit_experts(editor.model, editor.edited, [task], recipe)[0] for task in tasks]
    assert [fit.losses for fit in together] == [pytest.approx(fit.losses, abs=1e-4) for fit in alone]
