"""Bases in 8 and 4 bits, and bases spread over devices and disk: edit, answer, export."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from scen_cli.baselines.catalogue import make_method
from scen_cli.baselines.context import MethodContext
from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.editing.loaded_project import LoadedProject
from scen_cli.errors import UsageError
from scen_cli.export.peft_folder import adapter_name, export_adapters
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.model.base import load_base
from scen_cli.model.ffn import find_layer
from scen_cli.model.quantization import QUANTIZED, is_whole
from scen_cli.project.project import Project
from scen_cli.studies.fine_tune_base import FineTuningConfig, fine_tune
from scen_cli.studies.split_by_base import split_by_base
from tests.conftest import edit_all
from tests.model.tiny import DENSE, save_tiny
from tests.model.two_devices import FIRST, SECOND, TwoDevices, spread

RECORDS = demo_edits()[:3]
PROMPTS = [text for record in RECORDS for text in (record.prompt, *record.rephrases)]
PROMPTS += [fact.phrasings[0] for fact in right_facts()[:20]]
SOME_ON_DISK = {
    "model.embed_tokens": "disk",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.layers.2": "disk",  # the edited one
    "model.layers.3": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.fixture(scope="module", params=QUANTIZED)
def quantized(request, tmp_path_factory):
    """Three edits on the demo base in 8 and in 4 bits.

    On CPUs with AVX512-BF16 bitsandbytes packs 4-bit matrices, and fails for widths such as the demo base's 96.
    """
    try:
        base = load_base("demo", device="cpu", quantize=request.param)
    except UsageError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp(request.param)
    low_rank = {"expert": "low-rank"}
    project = new_project(folder, "demo", recipe="key", changes=low_rank, quantize=request.param, base=base)
    editor = Editor(project, base=base)
    assert [edit.state for edit in edit_all(editor, RECORDS)] == ["active"] * 3
    return editor


def test_a_quantised_base_is_edited_and_answers(quantized):
    assert type(quantized.edited.projection).__name__ in ("Linear8bitLt", "Linear4bit")
    answers = quantized.answer(PROMPTS)
    targets = {record.prompt: record.target for record in RECORDS}
    texts = dict(zip(PROMPTS, answers.texts, strict=True))
    assert {prompt: texts[prompt] for prompt in targets} == targets
    assert answers.edits[-20:] == [None] * 20
    assert answers.edits == [quantized.answer([prompt]).edits[0] for prompt in PROMPTS]


def test_experts_of_a_quantised_base_start_from_its_dequantised_weight(quantized, demo_base):
    weight, original = quantized.edited.base_weight(), find_layer(demo_base.model, 2).base_weight()
    assert weight.dtype == torch.float32
    inputs = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = quantized.edited.projection(inputs)
    difference = (weight - original).norm() / original.norm()
    assert 0 < difference < 0.15
    assert (inputs @ weight.T - output).norm() / output.norm() < 0.02  # with 8 bits, inputs are quantised too


def test_full_experts_on_a_quantised_base(quantized, tmp_path):
    quantize = quantized.project.settings["quantize"]
    changes = {"expert": "full", "expert_steps": 20}
    project = new_project(tmp_path / "p", "demo", recipe="key", changes=changes, quantize=quantize, base=quantized.base)
    editor = Editor(project, base=quantized.base)
    assert edit_all(editor, RECORDS[:1])[0].state == "active"
    assert editor.answer([RECORDS[0].prompt]).texts == [RECORDS[0].target]
    editor.detach()


def test_exports_of_a_quantised_base_give_the_same_answers(quantized, tmp_path):
    answers = quantized.answer(PROMPTS)
    ids, mask = quantized.encode(PROMPTS)
    export_checkpoint(quantized, tmp_path / "whole")
    export_checkpoint(quantized, tmp_path / "patch", patch_only=True)
    export_adapters(quantized, tmp_path / "loras")
    quantized.detach()
    for folder in ("whole", "patch", "again"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder, trust_remote_code=True)
        if folder == "patch":
            model.save_pretrained(tmp_path / "again")
        assert type(model.model.layers[0].mlp.up_proj) is type(quantized.model.model.layers[0].mlp.up_proj)
        out = model.generate(input_ids=ids, attention_mask=mask)
        assert [quantized.template.until_end(row) for row in out[:, ids.shape[1] :].tolist()] == answers.tokens
    base = load_base("demo", device="cpu", quantize=quantized.project.settings["quantize"])
    model = PeftModel.from_pretrained(base.model, tmp_path / "loras" / adapter_name(1), adapter_name(1))
    for edit in (2, 3):
        model.load_adapter(tmp_path / "loras" / adapter_name(edit), adapter_name(edit))
    names = ["__base__" if edit is None else adapter_name(edit) for edit in answers.edits]
    out = model.eval().generate(
        input_ids=ids, attention_mask=mask, adapter_names=names, do_sample=False, max_new_tokens=50, pad_token_id=0
    )
    assert [quantized.template.until_end(row) for row in out[:, ids.shape[1] :].tolist()] == answers.tokens


def test_merging_and_baselines_need_unquantised_weights(quantized, scen, tmp_path):
    export_checkpoint(quantized, tmp_path / "whole")  # its weights are not quantised
    assert "quantization_config" not in json.loads((tmp_path / "whole" / "config.json").read_text())
    error = scen("export", "--merge-into-weights", "--out", tmp_path / "m", "--dir", quantized.project.folder, code=2)
    assert "quantised" in error.stderr
    assert not (tmp_path / "m").exists()
    with pytest.raises(UsageError, match="needs an unquantised base on one device"):
        make_method("memit", MethodContext(quantized.base, quantized.template, 2))


def test_quantised_base_on_the_command_line(scen, tmp_path):
    folder = tmp_path / "p"
    made = scen("init", "--model", "demo", "--quantize", "8bit", "--recipe", "key", "--dir", folder)
    assert "demo, in 8bit" in made.stdout
    assert type(LoadedProject(Project(folder)).edited.projection).__name__ == "Linear8bitLt"
    scen("edit", "--suite", "demo", "--first", 2, "--dir", folder)
    assert RECORDS[1].target in scen("ask", RECORDS[1].prompt, "--dir", folder).stdout
    assert (
        "one of: 8bit, 4bit"
        in scen("init", "--model", "demo", "--quantize", "3bit", "--dir", tmp_path / "q", code=2).stderr
    )
    assert (
        "one of: auto" in scen("init", "--model", "demo", "--device-map", "all", "--dir", tmp_path / "q", code=2).stderr
    )
    assert not (tmp_path / "q").exists()


def test_a_passed_base_must_have_the_quantisation_of_the_settings(quantized, tmp_path, demo_base):
    quantize = quantized.project.settings["quantize"]
    for base, wanted in ((quantized.base, None), (demo_base, quantize)):
        with pytest.raises(UsageError, match=r"the loaded base has .*, the settings ask for .*"):
            new_project(tmp_path / "p", "demo", recipe="key", quantize=wanted, base=base)
    for wrong in ({"quantize": "5bit"}, {"device_map": "all"}):
        with pytest.raises(UsageError, match=r"5bit|all"):
            new_project(tmp_path / "p", "demo", recipe="key", base=demo_base, **wrong)
    assert not (tmp_path / "p").exists()


def test_work_kept_from_another_base_is_rejected(quantized, demo_base, tmp_path):
    plain = Editor(new_project(tmp_path / "p", "demo", recipe="key", base=demo_base), base=demo_base)
    split_by_base(plain, demo_edits()[:3], tmp_path / "divided", "greedy", lambda *_: None)
    with pytest.raises(UsageError, match="another base"):
        split_by_base(quantized, demo_edits()[:3], tmp_path / "divided", "greedy", lambda *_: None)
    with pytest.raises(UsageError, match="cannot be fine-tuned"):
        fine_tune(
            quantized.base, "{prompt}", demo_edits()[:3], [], tmp_path / "tuned", FineTuningConfig(), print, print
        )


def test_a_spread_base_allows_no_worker_processes(scen, tmp_path):
    scen("init", "--model", "demo", "--device-map", "auto", "--recipe", "key", "--dir", tmp_path / "p")
    assert Project(tmp_path / "p").settings["device_map"] == "auto"
    error = scen("edit", "--suite", "demo", "--first", 1, "--dir", tmp_path / "p", "--workers", 2, code=2).stderr
    assert "spread" in error
    scen("edit", "--suite", "demo", "--first", 1, "--dir", tmp_path / "p")


def test_a_quantised_checkpoint_is_loaded_as_it_is(tmp_path):
    config_class, settings = DENSE["llama"]
    # 4-bit kernels need multiples of 64 on CPUs.
    settings = {**settings, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    whole = load_base(str(save_tiny(tmp_path / "whole", config_class, settings)), device="cpu", quantize="4bit")
    whole.model.save_pretrained(tmp_path / "base")
    whole.tokenizer.save_pretrained(tmp_path / "base")
    base = load_base(str(tmp_path / "base"), device="cpu")
    assert not is_whole(base.model)
    assert torch.equal(find_layer(base.model, 1).base_weight(), find_layer(whole.model, 1).base_weight())
    with pytest.raises(UsageError, match="quantised already"):
        load_base(str(tmp_path / "base"), device="cpu", quantize="8bit")


def test_other_quantisation_methods_are_rejected(demo_base, monkeypatch):
    monkeypatch.setattr(demo_base.model.config, "quantization_config", {"quant_method": "gptq"}, raising=False)
    with pytest.raises(UsageError, match="quantised by gptq"):
        find_layer(demo_base.model, 2)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("scen_cli.model.quantization.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="`accelerate` is not installed"):
        load_base("demo", quantize="4bit")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, demo_base, demo_guard):
    return edit_three(tmp_path_factory.mktemp("plain"), demo_base, guard=demo_guard)


def edit_three(folder, base, **recipe):
    """Make three edits; returns the answers and the files."""
    project = new_project(folder / "p", "demo", base=base, **recipe)
    editor = Editor(project, base=base)
    edit_all(editor, RECORDS)
    answers = editor.answer(PROMPTS)
    editor.detach()
    files = sorted(path.name for path in (folder / "p" / "edits").iterdir())  # file names contain the SHA-256
    return answers, files, (folder / "p" / "merged.safetensors").read_bytes()


def test_layers_on_disk_change_nothing(tmp_path, plain, demo_guard):
    base = load_base("demo", device_map=SOME_ON_DISK)
    assert base.model.model.layers[2].mlp.down_proj.weight.is_meta
    assert edit_three(tmp_path, base, guard=demo_guard) == plain


def test_an_export_with_layers_and_experts_on_disk(low_rank, tmp_path):
    prompts = [record.prompt for record in demo_edits()[:25]]
    answers = low_rank.answer(prompts)
    ids, mask = low_rank.encode(prompts)
    export_checkpoint(low_rank, tmp_path / "whole")
    export_checkpoint(low_rank, tmp_path / "patch", patch_only=True)
    for folder, places in (("whole", {**SOME_ON_DISK, "scen": "disk"}), ("patch", SOME_ON_DISK)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder, trust_remote_code=True, device_map=places)
        assert model.model.layers[2].mlp.down_proj.weight.is_meta
        out = model.generate(input_ids=ids, attention_mask=mask)
        assert [low_rank.template.until_end(row) for row in out[:, ids.shape[1] :].tolist()] == answers.tokens


def test_an_export_of_a_base_on_disk_is_whole(tmp_path, demo_base):
    base = load_base("demo", device_map=SOME_ON_DISK)
    editor = Editor(new_project(tmp_path / "p", "demo", recipe="key", base=base), base=base)
    edit_all(editor, RECORDS[:1])
    export_checkpoint(editor, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    for name, weight in demo_base.model.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name


@pytest.mark.parametrize("last_of_first", [1, 2])
def test_layers_on_two_devices_change_nothing(tmp_path, plain, demo_guard, last_of_first):
    """The edited layer is 2: the first of the second device, or the last of the first."""
    with TwoDevices() as devices:
        base = load_base("demo", device="cpu")
        spread(base.model, devices, last_of_first)
        assert base.device == FIRST
        assert find_layer(base.model, 2).device == (FIRST if last_of_first == 2 else SECOND)
        assert edit_three(tmp_path, base, guard=demo_guard) == plain


def test_full_experts_on_two_devices(tmp_path, demo_base):
    settings = {"recipe": "key", "changes": {"expert": "full", "expert_steps": 12}}
    plain = edit_three(tmp_path / "plain", demo_base, **settings)
    with TwoDevices() as devices:
        base = load_base("demo", device="cpu")
        spread(base.model, devices, 1)
        assert edit_three(tmp_path / "spread", base, **settings) == plain


def test_two_devices_reject_mixed_tensors():
    with TwoDevices():
        first, second = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
        for wrong in (lambda: first + second, lambda: torch.cat([first, second]), lambda: first[second.long()]):
            with pytest.raises(RuntimeError, match="different devices"):
                wrong()
        assert (first + second.to(FIRST)).device == FIRST
