"""Merged checkpoints: their answers and figures, and the base afterwards."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from scen_cli.data.suites import demo_edits
from scen_cli.errors import UsageError
from scen_cli.export import fold_weights
from scen_cli.export.fold_weights import LAMBDAS, replaced_weight
from scen_cli.export.merged_checkpoint import export_merged
from tests.conftest import edit_all


def answers(folder, prompts):
    """Answers of a plain Llama, loaded without `trust_remote_code`."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [f"[INST]{prompt}[/INST]" for prompt in prompts]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    out = model.generate(**inputs)[:, inputs.input_ids.shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]


@pytest.mark.slow
@pytest.mark.parametrize("lambdas", [(1000.0, 2500.0), LAMBDAS])
def test_the_merged_checkpoint_is_a_plain_llama_with_the_reported_figures(low_rank, tmp_path, monkeypatch, lambdas):
    monkeypatch.setattr(fold_weights, "LAMBDAS", lambdas)
    weight = low_rank.edited.projection.weight
    before, lines = weight.clone(), []
    files, folded = export_merged(low_rank, tmp_path / "out", progress=lines.append)
    assert torch.equal(weight, before)
    assert len(lines) == len(lambdas)
    assert not [path for path in files if path.suffix == ".py"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not {"auto_map", "scen"} & set(config)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) is LlamaForCausalLM
    records = demo_edits()[:20]
    right = [
        text == r.target
        for text, r in zip(answers(tmp_path / "out", [r.prompt for r in records]), records, strict=True)
    ]
    reported = folded.figures["reliability"].patched
    assert (sum(right), len(right)) == (reported.right, reported.total)
    assert reported.right >= 16
    assert folded.figures["locality"].patched.share > 0.5
    assert folded.routed["reliability"].patched.right == 20
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| Reliability | {reported} |" in card
    assert folded.ridge_lambda is not None
    assert f"lambda {folded.ridge_lambda:g}" in card


def test_a_single_edit_is_folded_exactly(low_rank, tmp_path):
    record = demo_edits()[2]
    _files, folded = export_merged(low_rank, tmp_path / "out", edit=3)
    assert folded.ridge_lambda is None
    prompts = [record.prompt, *record.rephrases, "hello", demo_edits()[7].prompt]
    by_expert = low_rank.answer(prompts, edits=[3] * len(prompts))
    assert answers(tmp_path / "out", prompts) == by_expert.texts
    ids, mask = low_rank.encode(prompts)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    with low_rank.snapshot() as patch, torch.no_grad():
        with patch.using(patch.rows_of([3] * len(prompts))):
            routed = low_rank.model(ids, attention_mask=mask).logits
        plain = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(plain[mask.bool()], routed[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_full_expert_is_folded(make_editor, tmp_path):
    editor = make_editor("closed-form", expert="full")
    edit_all(editor, demo_edits()[:2])
    own = editor.answer([demo_edits()[1].prompt])
    assert own.edits == [2]
    export_merged(editor, tmp_path / "out", edit=2)
    assert answers(tmp_path / "out", [demo_edits()[1].prompt]) == own.texts


@pytest.mark.slow
def test_a_failed_gate_writes_nothing(low_rank, tmp_path, scen):
    folder = low_rank.project.folder
    result = scen("export", "--dir", folder, "--out", tmp_path / "out", "--merge-into-weights", "--edit", 1,
                   "--gate", "locality>=0.99", code=3)  # fmt: skip
    assert "nothing was written" in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_inactive_edit_fails(low_rank, tmp_path):
    with pytest.raises(UsageError, match="not active"):
        export_merged(low_rank, tmp_path / "out", edit=99)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        "--peft --patch-only",
        "--peft --dtype bfloat16",
        "--peft --max-shard-size 1GB",
        "--edit 1",
        "--gate locality>=0.9",
        "--merge-into-weights --dtype float16",
        "--merge-into-weights --gate drift-kl<=1",
        "--merge-into-weights --gate much",
    ],
)
def test_conflicting_options_fail(scen, tmp_path, options):
    assert scen("export", "--out", tmp_path / "out", *options.split(), code=2).stderr.startswith("error: ")


def test_the_base_weight_is_restored_after_an_error(low_rank):
    weight = low_rank.edited.projection.weight
    before = weight.clone()

    def fail() -> None:
        with replaced_weight(low_rank.edited, torch.zeros_like(weight)):
            assert not weight.any()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(weight, before)
