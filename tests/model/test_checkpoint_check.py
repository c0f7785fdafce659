"""Checkpoints that tell of more than they hold, and targets and chat templates that cannot be used."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from scen_cli.errors import UsageError
from scen_cli.model.base import DEMO, load_base
from scen_cli.model.checkpoint_check import check_files
from scen_cli.model.template import make_template


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DEMO, tmp_path / "base")


@pytest.mark.parametrize("size", ["hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers"])
def test_a_config_of_absurd_sizes_is_refused_before_anything_is_allocated(folder, size):
    config = json.loads((folder / "config.json").read_text())
    check_files("it", folder)
    for place in ({size: 10**9}, {"text_config": {**config, size: 10**9}}):
        (folder / "config.json").write_text(json.dumps({**config, **place}))
        with pytest.raises(UsageError, match="far more weights than there are"):
            check_files("it", folder)


@pytest.mark.parametrize("target_module", ["../x.safetensors", "/x.safetensors", "in/x.safetensors", 7])
def test_an_index_that_leads_out_of_the_folder(folder, place):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(UsageError, match="outside of its folder"):
        check_files("it", folder)


def test_weights_that_are_lacking_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="lacks 1 weights, `model.layers.1.mlp.up_proj.weight` among them"):
        load_base(str(folder), device="cpu")


def test_a_target_with_an_end_token_in_it(demo_base):
    for form in ("none", "[INST]{prompt}[/INST]"):
        template = make_template(demo_base.tokenizer, demo_base.model, form)
        for target in ("Riga</s>", "</s>", "Riga</s> or Rome"):
            with pytest.raises(UsageError, match="has the end token </s> in it"):
                template.target_ids("Where?", target)


@pytest.mark.parametrize("program", ["{{ ''.__class__ }}", "{% for %}", "{{ raise_exception('no') }}", "hello"])
def test_a_chat_template_that_cannot_be_used(folder, program):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": program}))
    base = load_base(str(folder), device="cpu")
    with pytest.raises(UsageError, match="chat template"):
        make_template(base.tokenizer, base.model, "chat")
