"""Tests on a CUDA device: `pytest -m gpu`. They are skipped where there is none."""

from __future__ import annotations

import time

import pytest
import torch

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Passages, Suite, demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.hallucination import evaluate_perplexity
from scen_cli.model.base import Base, load_base
from scen_cli.model.keys import last_token, positions_of
from scen_cli.model.quantization import QUANTIZED
from scen_cli.studies.fine_tune_base import FineTuningConfig, fine_tune
from tests.conftest import edit_all

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    base = load_base("demo", device="cuda")
    editor = Editor(new_project(tmp_path_factory.mktemp("gpu"), "demo", recipe="key", base=base), base=base)
    edit_all(editor, demo_edits()[:40])
    yield editor
    editor.detach()


def test_edits_are_learned_and_routed(editor):
    records = demo_edits()[:40]
    answers = editor.answer([record.prompt for record in records])
    assert answers.texts == [record.target for record in records]
    assert answers.edits == list(range(1, 41))
    fact = right_facts()[0]
    assert editor.answer([fact.phrasings[0]]).texts == [fact.answer]


def test_mixed_rows_equal_each_prompt_alone(editor):
    prompts = [record.prompt for record in demo_edits()[:20]] + [fact.phrasings[0] for fact in right_facts()[:20]]
    ids, mask = editor.encode(prompts)
    choice = editor.patch().route(editor.model, ids, mask).choice
    with editor.patch().using(choice):
        batch = editor.model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask)).logits
    at_end = batch[torch.arange(len(prompts)), last_token(mask)]
    for row, prompt in zip(at_end, prompts, strict=True):
        one, whole = editor.encode([prompt])
        with editor.patch().using(editor.patch().route(editor.model, one, whole).choice):
            alone = editor.model(input_ids=one, attention_mask=whole).logits[0, -1]
        assert (row - alone).abs().max() < 1e-4


def test_figures_equal_those_on_the_cpu(editor, tmp_path):
    suite = Suite("s", demo_edits()[:40], [fact.phrasings[0] for fact in right_facts()[:100]])
    gpu_figures = evaluate(editor, suite).figures
    on_cpu = Editor(editor.project, device="cpu")
    cpu_figures = evaluate(on_cpu, suite).figures
    for name, figure in cpu_figures.items():
        assert abs(figure.patched.value - gpu_figures[name].patched.value) < 0.011, name
    passages = Passages(Suite("s", demo_edits()[:10], []), [], [fact.phrasings[0] for fact in right_facts()[:10]])
    for name, figure in evaluate_perplexity(on_cpu, passages).figures.items():
        assert figure.patched.mean == pytest.approx(
            evaluate_perplexity(editor, passages).figures[name].patched.mean, rel=1e-2
        )
    on_cpu.detach()


def test_fine_tuning_resumes_after_a_stop(tmp_path):
    questions = [EditRecord(prompt=f"Where is {name}?", target="wxyz"[n % 4]) for n, name in enumerate("ABCDEFGH")]
    tuning = FineTuningConfig(epochs=2, batch=4, lr=1e-3)

    def run(folder, note):
        fine_tune(
            load_base("demo", device="cuda"),
            "[INST]{prompt}[/INST]",
            questions,
            questions[:1],
            folder,
            tuning,
            lambda _line, _pace: None,
            note,
        )

    def stop(_line):
        raise KeyboardInterrupt

    run(tmp_path / "whole", lambda _line: None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop)
    run(tmp_path / "broken", lambda _line: None)
    whole, broken = (load_base(str(tmp_path / name), device="cpu").model.state_dict() for name in ("whole", "broken"))
    assert all(torch.allclose(whole[name], broken[name], atol=1e-5) for name in whole)


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"prefill_chunk_size": 3}, {"use_cache": False}])
def test_decoding_modes(editor, options):
    records = demo_edits()[:12]
    assert editor.answer([r.prompt for r in records], **options).texts == [r.target for r in records]


@pytest.mark.parametrize("quantize", QUANTIZED)
def test_edits_of_a_quantised_base(tmp_path, quantize):
    base = load_base("demo", dtype="bfloat16", device="cuda", quantize=quantize)
    editor = Editor(new_project(tmp_path, "demo", recipe="key", quantize=quantize, base=base), base=base)
    records = demo_edits()[:10]
    edit_all(editor, records)
    assert editor.answer([record.prompt for record in records]).texts == [record.target for record in records]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is only one CUDA device")
def test_edits_of_a_base_on_two_devices(tmp_path):
    places = {f"model.layers.{layer}": layer // 2 for layer in range(4)}
    places |= {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    base = load_base("demo", device_map=places)
    editor = Editor(new_project(tmp_path, "demo", recipe="key", base=base), base=base)
    records = demo_edits()[:10]
    edit_all(editor, records)
    assert editor.answer([record.prompt for record in records]).texts == [record.target for record in records]


def test_a_7b_shaped_random_llama_in_bfloat16(tmp_path, demo_base, capsys):
    """Twenty edits at the shape of Llama-2-7B fit and train; prints the time per edit."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=800, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # other sizes: Llama-2-7B
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.requires_grad_(False)
    base = Base(model.eval(), demo_base.tokenizer, demo_base.folder)
    changes = {"expert_lr": 1e-3, "expert_steps": 10}
    project = new_project(tmp_path / "p", "random-7b", layer=16, recipe="key", changes=changes, base=base)
    editor = Editor(project, base=base)
    records = [EditRecord(prompt=r.prompt, target=r.target) for r in demo_edits()[:20]]
    torch.cuda.synchronize()
    started = time.perf_counter()
    rows = edit_all(editor, records)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    with capsys.disabled():
        learned = sum(row.state == "active" for row in rows)
        print(f"\n7B-shaped, bf16, layer 16 of 32: {seconds / 20:.2f} s per edit, {learned} of 20 learned")
    assert len(rows) == 20
    assert all(row.expert_losses[-1] < row.expert_losses[0] for row in rows)
