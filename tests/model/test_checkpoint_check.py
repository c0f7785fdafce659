"""Checkpoints that claim more than they hold, and unusable targets and chat templates."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from scen_cli.editing.create_project import new_project
from scen_cli.errors import UsageError
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.model.base import check_files, load_base
from scen_cli.model.known_bases import DEMO
from scen_cli.model.template import make_template


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DEMO, tmp_path / "base")


@pytest.mark.parametrize("size", ["hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers"])
def test_a_config_with_huge_sizes_is_rejected_before_allocation(folder, size):
    config = json.loads((folder / "config.json").read_text())
    check_files("it", folder)
    for change in ({size: 10**9}, {"text_config": {**config, size: 10**9}}):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UsageError, match="far more weights than there are"):
            check_files("it", folder)


@pytest.mark.parametrize("file_name", ["../x.safetensors", "/x.safetensors", "in/x.safetensors", 7])
def test_an_index_that_points_outside_the_folder_is_rejected(folder, file_name):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file_name}}))
    with pytest.raises(UsageError, match="outside its folder"):
        check_files("it", folder)


def test_an_adapter_beside_the_weights_or_alone_is_refused_by_name(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a PEFT adapter"):
        load_base(str(folder), device="cpu")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match="holds a PEFT adapter"):
        load_base(str(folder), device="cpu")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UsageError, match="holds a PEFT adapter"):
        load_base(str(folder), device="cpu")


def test_an_export_of_scen_is_no_base(edited, tmp_path):
    for patch_only in (False, True):
        folder = tmp_path / f"export-{patch_only}"
        export_checkpoint(edited, folder, patch_only=patch_only)
        with pytest.raises(UsageError, match="is an export of scen"):
            load_base(str(folder), device="cpu")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_found_when_a_project_is_made(folder, tmp_path, value):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"model\.layers\.1\.mlp\.up_proj\.weight` holds values that are not finite"):
        new_project(tmp_path / "p", str(folder), layer=2, recipe="key", device="cpu")
    assert not (tmp_path / "p").exists()


def test_weights_that_overflow_are_found_when_a_project_is_made(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = 3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="its weights are finite, but what it computes in torch.float32 is not"):
        new_project(tmp_path / "p", str(folder), layer=2, recipe="key", device="cpu")
    assert not (tmp_path / "p").exists()


def test_a_tokenizer_that_is_missing_or_damaged_is_named(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be loaded: its tokenizer: "):
        load_base(str(folder), device="cpu")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UsageError, match="cannot be loaded: its tokenizer: "):
        load_base(str(folder), device="cpu")


def test_missing_weights_are_an_error(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="1 weights are missing, for example `model.layers.1.mlp.up_proj.weight`"):
        load_base(str(folder), device="cpu")


def test_a_target_with_an_end_token_is_rejected(demo_base):
    for form in ("none", "[INST]{prompt}[/INST]"):
        template = make_template(demo_base.tokenizer, demo_base.model, form)
        for target in ("Riga</s>", "</s>", "Riga</s> or Rome"):
            with pytest.raises(UsageError, match="has the end token </s> in it"):
                template.target_ids("Where?", target)


@pytest.mark.parametrize("program", ["{{ ''.__class__ }}", "{% for %}", "{{ raise_exception('no') }}", "hello"])
def test_an_unusable_chat_template_is_rejected(folder, program):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": program}))
    base = load_base(str(folder), device="cpu")
    with pytest.raises(UsageError, match="chat template"):
        make_template(base.tokenizer, base.model, "chat")
