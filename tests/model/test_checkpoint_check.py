"""Checkpoints that claim more than they hold, and unusable targets and chat templates."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from scen_cli.errors import UsageError
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
