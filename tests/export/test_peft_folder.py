"""PEFT folders, loaded by PEFT: their answers equal `Editor.answer`."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.export.peft_folder import adapter_name, add_adapters, export_adapters
from scen_cli.model.base import load_base
from scen_cli.model.known_bases import DEMO
from scen_cli.model.routing import Whitening, activations_of, choose
from tests.conftest import edit_all
from tests.model.tiny import DENSE, save_tiny


def peft_model(folder, base, edits):
    model = PeftModel.from_pretrained(base.model, folder / adapter_name(edits[0]), adapter_name(edits[0]))
    for edit in edits[1:]:
        model.load_adapter(folder / adapter_name(edit), adapter_name(edit))
    return model.eval()


def test_a_mixed_batch_in_peft_gives_the_same_tokens(low_rank, tmp_path):
    records = demo_edits()[:20]
    prompts = [text for record in records for text in (record.prompt, *record.rephrases)]
    prompts += [fact.phrasings[0] for fact in right_facts()[:60]]
    own = low_rank.answer(prompts)
    names = ["__base__" if edit is None else adapter_name(edit) for edit in own.edits]
    assert len(set(names)) == 21
    ids, mask = low_rank.encode(prompts)
    with low_rank.snapshot() as patch, torch.no_grad():
        route = patch.route(low_rank.model, ids, mask)
        with patch.using(route.choice):
            logits = low_rank.model(ids, attention_mask=mask).logits
    export_adapters(low_rank, tmp_path / "out", license="cc0-1.0")
    low_rank.detach()

    base = load_base("demo", device="cpu")
    model = peft_model(tmp_path / "out", base, low_rank.patch().edits)
    low_rank.detach()
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask, adapter_names=names).logits
        out = model.generate(
            input_ids=ids, attention_mask=mask, adapter_names=names, do_sample=False, max_new_tokens=50, pad_token_id=0
        )
    torch.testing.assert_close(theirs, logits, atol=1e-4, rtol=0)
    assert [low_rank.template.until_end(row) for row in out[:, ids.shape[1] :].tolist()] == own.tokens


def test_the_router_files_give_the_adapter_of_a_key(low_rank, tmp_path):
    export_adapters(low_rank, tmp_path / "out")
    router = json.loads((tmp_path / "out" / "router.json").read_text())
    tensors = load_file(tmp_path / "out" / "router.safetensors")
    prompts = [record.prompt for record in demo_edits()[:25]]
    whitening = Whitening(*(tensors[n] for n in ("mean", "axes", "scales"))) if router["whitening_rank"] else None
    activations = activations_of(
        low_rank.keys(prompts), tensors["neurons"], router["cosine"], whitening, tensors["biases"]
    )
    adapters = [None if row == -1 else router["adapters"][row] for row in choose(activations, router["theta"]).tolist()]
    routed = low_rank.route(prompts).edits
    assert adapters == [None if edit is None else adapter_name(edit) for edit in routed]
    assert None in routed[20:]
    assert len(set(routed)) == 21


def test_adapter_config_and_tensors(low_rank, tmp_path):
    files = export_adapters(low_rank, tmp_path / "out", base_name="served-name", license="cc0-1.0")
    assert {path.name for path in files if path.parent == tmp_path / "out"} == {
        "README.md",
        "router.json",
        "router.safetensors",
    }
    config = json.loads((tmp_path / "out" / "edit-000001" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out" / "edit-000001" / "adapter_model.safetensors")
    assert config["base_model_name_or_path"] == "served-name"
    assert config["lora_alpha"] == config["r"] == 16
    name = "base_model.model.model.layers.2.mlp.down_proj.lora_{}.weight"
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        name.format("A"): (16, 768),
        name.format("B"): (96, 16),
    }
    assert 'license: "cc0-1.0"' in (tmp_path / "out" / "README.md").read_text()


def test_conv1d_projections_and_full_experts(make_editor, tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE["gpt2"])
    base = load_base(str(folder), device="cpu")
    changes = {"expert": "low-rank", "low_rank_lr": 0.1, "expert_steps": 60, "theta": 0.97}
    editor = Editor(
        new_project(tmp_path / "p", str(folder), layer=1, recipe="key", changes=changes, base=base), base=base
    )
    records = [record.model_copy(update={"rephrases": ()}) for record in demo_edits()[:2]]
    edit_all(editor, records)
    own = editor.answer([record.prompt for record in records])
    assert own.edits == [1, 2]
    ids, mask = editor.encode([record.prompt for record in records])
    export_adapters(editor, tmp_path / "out")
    editor.detach()
    model = peft_model(tmp_path / "out", load_base(str(folder), device="cpu"), [1, 2])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            adapter_names=["edit-000001", "edit-000002"],
            do_sample=False,
            max_new_tokens=20,
            pad_token_id=editor.pad_id,
        )
    theirs = [editor.template.until_end(row) for row in out[:, ids.shape[1] :].tolist()]
    assert theirs == [tokens[:20] for tokens in own.tokens]

    full = make_editor("paper")
    edit_all(full, demo_edits()[:1])
    with pytest.raises(UsageError, match="full matrix") as raised:
        export_adapters(full, tmp_path / "full")
    assert "scen compress" in str(raised.value.hint)
    assert not (tmp_path / "full").exists()


def test_add_adapters_writes_only_new_edits(make_editor, tmp_path):
    editor = make_editor("closed-form")
    records = demo_edits()[:3]
    edit_all(editor, records[:2])
    with editor.snapshot() as patch:
        assert add_adapters(editor, patch, tmp_path / "served", "demo") == ["edit-000001", "edit-000002"]
    first = tmp_path / "served" / "edit-000001" / "adapter_model.safetensors"
    before = first.stat()
    edit_all(editor, records[2:])
    with editor.snapshot() as patch:
        assert add_adapters(editor, patch, tmp_path / "served", "demo") == ["edit-000003"]
        assert add_adapters(editor, patch, tmp_path / "served", "demo") == []
        known = {1}
        assert add_adapters(editor, patch, tmp_path / "served", "demo", known) == []
        assert known == {1, 2, 3}
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in (tmp_path / "served").iterdir()) == [f"edit-00000{n}" for n in (1, 2, 3)]
    editor.detach()
    model = peft_model(tmp_path / "served", load_base(str(DEMO), device="cpu"), [1, 2, 3])
    assert len(model.peft_config) == 3
