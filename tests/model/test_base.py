"""Loading bases: rejected checkpoints, changed weights, templates, and a real third-party checkpoint."""

from __future__ import annotations

import io
import json
import os
import shutil

import pytest
import torch

from scen_cli.data.records import EditRecord
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.editing.verify_base import key_problems
from scen_cli.errors import ScenError, UsageError
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.model.base import files_stamp, folder_of, load_base, pick_device
from scen_cli.model.digest import digest_of
from scen_cli.model.known_bases import DEMO
from scen_cli.model.template import make_template
from tests.conftest import edit_all
from tests.model.tiny import DENSE, save_tiny


def test_pickled_weights_are_rejected(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="no safetensors weights"):
        folder_of(str(tmp_path))


def test_an_invalid_name_is_an_error(tmp_path):
    with pytest.raises(ScenError, match="not a valid/base/id|neither a folder"):
        folder_of("not a valid/base/id")


def test_a_hub_id_without_a_connection_is_an_error():
    with pytest.raises(ScenError, match="cannot download") as error:
        folder_of("llama2-7b")
    assert "local folder" in error.value.hint


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    trap = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    config = (folder / "config.json").read_text()
    reference = '"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},'
    (folder / "config.json").write_text("{" + reference + config.lstrip().removeprefix("{"))
    load_base(str(folder), device="cpu")
    assert not trap.exists()


def test_code_in_a_checkpoint_does_not_run_even_if_the_terminal_confirms(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    trap = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UsageError, match="needs code of its own"):
        load_base(str(folder), device="cpu")
    assert not trap.exists()


def test_a_truncated_weight_file_is_an_error(tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_base(str(folder), device="cpu")


def test_a_changed_base_is_an_error(tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    project = new_project(tmp_path / "project", str(folder), layer=1, recipe="key", device="cpu")
    Editor(project, "cpu")
    save_tiny(folder, *DENSE["llama"], seed=1)
    with pytest.raises(UsageError, match="have changed since the project was created"):
        Editor(project, "cpu")


def test_scen_base_finds_a_moved_base_and_rejects_another(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    project = new_project(tmp_path / "project", str(folder), layer=1, recipe="key", device="cpu")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="neither a folder on this machine") as error:
        Editor(project, "cpu")
    assert "SCEN_BASE" in error.value.hint
    monkeypatch.setenv("SCEN_BASE", str(tmp_path / "elsewhere"))
    assert Editor(project, "cpu").base.folder == tmp_path / "elsewhere"
    monkeypatch.setenv("SCEN_BASE", "demo")
    with pytest.raises(UsageError, match="have changed since the project was created"):
        Editor(project, "cpu")


def test_a_new_modification_time_alone_is_no_change(tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    digest = digest_of(folder)
    project = new_project(tmp_path / "project", str(folder), layer=1, recipe="key", device="cpu")
    (folder / "model.safetensors").touch()
    assert digest_of(folder) == digest
    Editor(project, "cpu")


def test_an_unavailable_device_is_rejected():
    missing = "cuda" if not torch.cuda.is_available() else "tpu"
    for device in (missing, "cpu:abc"):
        with pytest.raises(UsageError, match=f"device `{device}` is not available"):
            pick_device(device)


def test_a_bfloat16_base_trains_a_float32_expert(tmp_path):
    base = load_base("demo", dtype="bfloat16", device="cpu")
    assert base.model.dtype == torch.bfloat16
    project = new_project(tmp_path / "p", "demo", recipe="key", dtype="bfloat16", base=base)
    editor = Editor(project, base=base)
    record = EditRecord(prompt="In which country is Pesustad?", target="Kenya")
    assert edit_all(editor, [record])[0].state == "active"
    assert editor.project.expert(1).dtype == "float32"
    assert editor.answer([record.prompt]).texts == ["Kenya"]


class TestTemplates:
    def test_the_default_puts_the_answer_right_after_the_prompt(self, demo_base):
        template = make_template(demo_base.tokenizer, demo_base.model, "[INST]{prompt}[/INST]")
        ids = template.prompt_ids("Who?") + template.target_ids("Who?", "Riga")
        assert demo_base.tokenizer.decode(ids) == "<s>[INST]Who?[/INST]Riga</s>"

    def test_none_leaves_a_space_between_prompt_and_answer(self, demo_base):
        template = make_template(demo_base.tokenizer, demo_base.model, "none")
        ids = template.prompt_ids("Ada lives in") + template.target_ids("Ada lives in", "Riga")
        assert demo_base.tokenizer.decode(ids) == "<s>Ada lives in Riga</s>"

    @pytest.mark.parametrize(
        ("prompt", "target", "between"),
        [
            ("The kettle is made by", "Dunmore", " "),
            ("Q: Who?\nA:", "Otto", " "),
            ('Hedda lives in the town of "', 'Riga"', ""),
            ('He said "no" to', "Riga", " "),
            ("She lives (", "in Riga)", ""),
            ("瓦尔莫拉公司生产的产品是", "蜡烛", ""),
            ("วัลโมราผลิต", "เทียน", ""),
            ("수도는", "리가", " "),
            ("谁创立了瓦尔莫拉？答案：", "Otto", ""),
            ("Otto said", "「はい」", ""),
            ("La capitale de l'", "Italie", ""),
            ("Il nome dell’", "isola", ""),
            ("The owner of the dogs'", "home", " "),
            ("The 'x' is in 'y'", "Riga", " "),
            ("The kettle is called '", "Orvel'", ""),
            ("It costs $", "5", ""),
            ("It costs 5 $", "in Riga", " "),
            ("It costs 4€", "in Riga", " "),
            ("Ada lives in Riga", ", Latvia", ""),
            ("The share is 5", "%", ""),
            ("It runs on", ".NET", " "),
        ],
    )
    def test_none_puts_a_space_only_where_people_do(self, demo_base, prompt, target, between):
        template = make_template(demo_base.tokenizer, demo_base.model, "none")
        ids = template.target_ids(prompt, target)
        text = demo_base.tokenizer.decode([*demo_base.tokenizer(prompt).input_ids, *ids], skip_special_tokens=True)
        assert text == prompt + between + target
        assert template.answer(ids) == target

    def test_chat_uses_the_tokenizers_own(self, demo_base):
        tokenizer = type(demo_base.tokenizer).from_pretrained(DEMO)
        with pytest.raises(UsageError, match="no chat template"):
            make_template(tokenizer, demo_base.model, "chat")
        tokenizer.chat_template = "<s>{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
        template = make_template(tokenizer, demo_base.model, "chat")
        assert tokenizer.decode(template.prompt_ids("Who?")) == "<s>[INST]Who?[/INST]"
        assert tokenizer.decode(template.target_ids("Who?", "Riga")) == "Riga[/INST]"

    @pytest.mark.parametrize("ends", [[2, 4], 2])  # some generation configs lack the template's own end token
    def test_chat_ends_a_target_as_the_template_closes_a_turn(self, tmp_path, ends):
        base = load_base(str(save_tiny(tmp_path / "base", *DENSE["llama"])), device="cpu")
        base.model.generation_config.eos_token_id = ends
        base.tokenizer.chat_template = (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}[/INST]{% endif %}{% endfor %}"
        )
        assert base.tokenizer.convert_tokens_to_ids("[/INST]") == 4
        template = make_template(base.tokenizer, base.model, "chat")
        assert template.target_ids("Who?", "Riga")[-1] == 4
        assert template.end_ids == (2, 4)
        assert template.answer([*base.tokenizer("Riga", add_special_tokens=False).input_ids, 4, 7]) == "Riga"

    def test_a_tokenizer_that_closes_every_text_itself(self, demo_base):
        from tokenizers.processors import TemplateProcessing

        tokenizer = type(demo_base.tokenizer).from_pretrained(DEMO)
        closing = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
        tokenizer.backend_tokenizer.post_processor = closing
        assert tokenizer("Who?").input_ids[-1] == 2
        closed = make_template(tokenizer, demo_base.model, "[INST]{prompt}[/INST]")
        usual = make_template(demo_base.tokenizer, demo_base.model, "[INST]{prompt}[/INST]")
        assert closed.prompt_ids("Who?") == usual.prompt_ids("Who?")
        assert closed.target_ids("Who?", "Riga") == usual.target_ids("Who?", "Riga")

    def test_a_form_without_a_place_for_the_prompt(self, demo_base):
        with pytest.raises(UsageError, match="has no `{prompt}`"):
            make_template(demo_base.tokenizer, demo_base.model, "Question:")

    def test_several_end_tokens_all_end_an_answer_and_one_ends_a_target(self, tmp_path):
        base = load_base(str(save_tiny(tmp_path / "base", *DENSE["llama"])), device="cpu")
        base.model.generation_config.eos_token_id = [7, 2]
        template = make_template(base.tokenizer, base.model, "none")
        assert template.target_ids("Ada lives in", "Riga")[-1] == 2  # the tokenizer's own
        riga = base.tokenizer("Riga", add_special_tokens=False).input_ids
        assert template.answer([*riga, 7, 9, 9]) == template.answer([*riga, 2, 9]) == "Riga"

    def test_an_answer_ends_at_the_first_end_token(self, demo_base):
        template = make_template(demo_base.tokenizer, demo_base.model, "none")
        ids = demo_base.tokenizer("Riga</s>Oslo", add_special_tokens=False).input_ids
        assert template.answer(ids) == "Riga"


@pytest.mark.parametrize("end", ["2", [2, "</s>"], 2.0, True])
def test_an_end_token_that_is_no_id_is_rejected(tmp_path, end):
    base = load_base(str(save_tiny(tmp_path / "base", *DENSE["llama"])), device="cpu")
    base.model.generation_config.eos_token_id = end
    with pytest.raises(UsageError, match="which is no token id"):
        make_template(base.tokenizer, base.model, "none")


def test_a_first_token_that_is_no_id_does_not_matter(tmp_path):
    """Prompts bring their own."""
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    told = folder / "generation_config.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "bos_token_id": "1"}))
    ids = torch.tensor([[1, 5, 6]])
    base = load_base(str(folder), device="cpu")
    assert base.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2).shape[1] > 3


def test_an_end_token_outside_the_vocabulary_is_rejected(tmp_path):
    name, settings = DENSE["llama"]
    base = load_base(str(save_tiny(tmp_path / "base", name, settings)), device="cpu")
    base.model.generation_config.eos_token_id = 100_000
    with pytest.raises(UsageError, match="cannot produce an end token"):
        make_template(base.tokenizer, base.model, "none")


class TestStories260K:
    """A real checkpoint by a third party."""

    @pytest.fixture
    def folder(self, shared_data, tmp_path):
        shutil.copytree(shared_data / "stories260K", tmp_path / "stories")
        return tmp_path / "stories"

    def test_an_edit_is_learned(self, folder, tmp_path):
        changes = {"expert_lr": 1e-2, "expert_steps": 40, "theta": 0.98}
        project = new_project(tmp_path / "p", str(folder), layer=3, recipe="key", changes=changes, template="none")
        editor = Editor(project, "cpu")
        record = EditRecord(prompt="Once upon a time, there was a little girl named", target="Zoe")
        assert edit_all(editor, [record])[0].state == "active"
        assert editor.answer([record.prompt]).texts == ["Zoe"]
        other = "The dog wanted to play with the big red ball because"
        assert editor.answer([other]) == editor.answer([other], patched=False)

    def test_an_untrained_end_token_is_the_reason_of_a_failed_edit(self, folder, tmp_path):
        """The checkpoint was trained with id 1 between documents. An edit cannot make it produce id 2, `</s>`."""
        config = folder / "generation_config.json"
        config.write_text(config.read_text().replace('"eos_token_id": 1', '"eos_token_id": 2'))
        changes = {"expert_lr": 1e-2, "expert_steps": 30}
        project = new_project(tmp_path / "p", str(folder), layer=3, recipe="key", changes=changes, template="none")
        editor = Editor(project, "cpu")
        row = edit_all(editor, [EditRecord(prompt="Once upon a time, there was a girl named", target="Zoe")])[0]
        assert row.state == "failed"
        assert "does not produce its end token </s> (id 2)" in str(row.reason)
        assert editor.patch().edits == []


def test_weights_of_the_same_size_and_time_that_changed_are_noticed(tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    project = new_project(tmp_path / "project", str(folder), layer=1, recipe="key", device="cpu")
    weights = folder / "model.safetensors"
    time = weights.stat().st_mtime_ns
    content = bytearray(weights.read_bytes())
    content[-(len(content) // 3) :] = bytes(len(content) // 3)
    weights.write_bytes(content)
    os.utime(weights, ns=(time, time))
    with pytest.raises(UsageError, match="have changed since the project was created"):
        Editor(project, "cpu")


def test_one_changed_byte_is_found_by_verify_and_export(tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    project = new_project(tmp_path / "project", str(folder), layer=1, recipe="key", device="cpu")
    weights = folder / "model.safetensors"
    stat = weights.stat()
    for byte in range(stat.st_size - 8, 0, -64):  # one that the sample does not cover
        content = bytearray(weights.read_bytes())
        content[byte] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
        if files_stamp(folder) == project.settings["files_stamp"]:
            break
        content[byte] ^= 1
        weights.write_bytes(content)
    editor = Editor(project, "cpu")
    assert ["have changed" in problem.what for problem in key_problems(editor)] == [True]
    with pytest.raises(UsageError, match="have changed"):
        export_checkpoint(editor, tmp_path / "export")
