"""Exported transformers folders give the answers of `Editor.answer`.

The quick tests load a folder in this process. The slow ones load it in a process that cannot import `scen_cli`; one
architecture does so in a quick test too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.dynamic_module_utils import get_imports

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite, demo_edits, load_suite
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import FROM_LIBRARY, Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.model.base import DTYPES, load_base
from scen_cli.model.keys import positions_of
from scen_cli.model.known_bases import DEMO
from tests.conftest import edit_all, revert, writing
from tests.export.read_export import read
from tests.model.tiny import DENSE, save_tiny

READER = Path(__file__).parent / "read_export.py"


def read_isolated(folder, questions) -> dict:
    """Run `read_export.py` as a script, which cannot import `scen_cli`; returns its report."""
    command = [sys.executable, str(READER), str(folder)]
    done = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["scen_importable"] is False
    return report


ISOLATED = pytest.param(read_isolated, marks=pytest.mark.slow, id="isolated")
readers = pytest.mark.parametrize("read", [pytest.param(read, id="in-process"), ISOLATED])


def test_the_code_of_an_export_imports_only_what_transformers_needs_itself(edited, tmp_path):
    """transformers refuses to load code if any package that it imports, also inside a function, is missing."""
    export_checkpoint(edited, tmp_path / "out")
    imported = {name for file in (tmp_path / "out").glob("*.py") for name in get_imports(file)}
    imported -= sys.stdlib_module_names
    assert {"torch", "transformers"} <= imported <= {"torch", "transformers", "safetensors", "huggingface_hub"}


@pytest.mark.parametrize(
    ("read", "edits", "facts"),
    [pytest.param(read, 4, 4, id="in-process"), pytest.param(read_isolated, 40, 200, marks=pytest.mark.slow, id="all")],
)
def test_answers_of_the_demo_suite_equal_answer(edited, tmp_path, read, edits, facts):
    records, others = demo_edits()[:edits], right_facts()[:facts]  # benchmarks/export_equality.py asks all
    prompts = [r.prompt for r in records] + [text for r in records for text in r.rephrases]
    prompts += [fact.phrasings[0] for fact in others]
    files = export_checkpoint(edited, tmp_path / "out")
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]

    own = edited.answer(prompts).texts
    export_checkpoint(edited, tmp_path / "patch", patch_only=True)
    size = sum(path.stat().st_size for path in (tmp_path / "patch").iterdir())
    assert size < sum(path.stat().st_size for path in files) - 4 * edited.model.num_parameters()
    edited.detach()
    for folder in ("out", "patch"):
        alone = prompts[::3] if folder == "out" else prompts[:60]
        report = read(tmp_path / folder, {"prompts": prompts, "alone": alone, "pipeline": prompts[:60]})
        assert report["loading"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
        assert report["mixed"] == own
        assert report["alone"] == (own[::3] if folder == "out" else own[:60])
        assert report["pipeline"] == own[:60]
        assert report["forward"] == FORWARD


FORWARD = {
    "routes at the last real token": True,
    "prompt_lengths hides the answer": True,
    "positional arguments as in the base": True,
    "experts replace the routing": True,
    "a cache keeps its experts": True,
    "a foreign cache fails": True,
    "embeddings alone fail": True,
    "a saved copy gives the same answers": True,
    "a saved copy has the same files": True,
}


@pytest.mark.parametrize(
    ("architecture", "read"),
    [
        ("gpt2", read_isolated),
        ("qwen2", read),
        ("gemma3_text", read),
        pytest.param("qwen2", read_isolated, marks=pytest.mark.slow),
        pytest.param("gemma3_text", read_isolated, marks=pytest.mark.slow),
    ],
)
def test_other_architectures_and_tied_weights(architecture, read, tmp_path):
    base = load_base(str(save_tiny(tmp_path / "base", *DENSE[architecture])), device="cpu")
    changes = {"expert_lr": 3e-2, "expert_steps": 60, "theta": 0.97}
    project = new_project(tmp_path / "p", str(tmp_path / "base"), layer=1, recipe="key", changes=changes, base=base)
    editor = Editor(project, base=base)
    records = [
        EditRecord(prompt="Where was Ada born?", target="Riga"),
        EditRecord(prompt="What does Velmora make?", target="ink"),
    ]
    assert {row.state for row in edit_all(editor, records)} == {"active"}
    prompts = [*(record.prompt for record in records), "Who is Otto?"]
    own = editor.answer(prompts).texts
    export_checkpoint(editor, tmp_path / "out")
    report = read(tmp_path / "out", {"prompts": prompts, "alone": prompts, "pipeline": []})
    assert report["mixed"] == report["alone"] == own
    assert own[:2] == ["Riga", "ink"]

    # A forward routes as `route` does, with any combination of mask, cache and positions, and after a cast.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ids, mask = editor.encode(prompts)
    choices = []
    model._patch.remember = lambda _cache, choice: choices.append(choice.tolist())
    with torch.no_grad():
        model(ids, attention_mask=mask)
        model(ids)
        model(ids, attention_mask=mask, past_key_values=DynamicCache())
        model(ids, attention_mask=mask, position_ids=positions_of(mask))
        model.to(torch.bfloat16)(ids, attention_mask=mask)
    assert choices == [[0, 1, -1]] * 5


@readers
@pytest.mark.parametrize(
    ("target_module", "changes"), [("attn", {}), ("up", {}), ("down", {"edits_per_expert": 2, "theta": 0.6})]
)
def test_experts_of_other_modules_and_shared_experts(make_editor, tmp_path, target_module, changes, read):
    editor = make_editor("key", target_module=target_module, expert_steps=30, **changes)
    records = demo_edits()[:4]
    size = editor.recipe.edits_per_expert
    with editor.project.writing():
        for start in range(0, 4, size):
            editor.edit_group([(record, FROM_LIBRARY) for record in records[start : start + size]])
        editor.project.merge()
    prompts = [r.prompt for r in records] + [fact.phrasings[0] for fact in right_facts()[:20]]
    own = editor.answer(prompts)
    assert own.texts[:4] == [r.target for r in records]
    export_checkpoint(editor, tmp_path / "out")
    assert f"with {len(records)} facts corrected" in (tmp_path / "out" / "README.md").read_text()
    editor.detach()
    report = read(tmp_path / "out", {"prompts": prompts, "alone": prompts, "pipeline": []})
    assert report["mixed"] == report["alone"] == own.texts


@readers
@pytest.mark.parametrize(
    "changes", [{}, {"key_pooling": "mean", "subject_filter": False}, {"mask_subject": True, "key_layer": 3}]
)
def test_whitening_biases_segments_and_subject_filter(make_editor, tmp_path, changes, read):
    """The export routes as the project does with all parts of the default recipe."""
    editor = make_editor("closed-form", expert_steps=20, **changes)
    records = demo_edits()[:8]
    edit_all(editor, records)
    prompts = [text for record in records for text in (record.prompt, *record.rephrases)]
    prompts += [f"I have a question for you. {record.prompt}" for record in records]
    prompts += [f"Hi[/INST]Hello</s>[INST]{record.prompt}" for record in records]  # a second turn
    prompts += [record.prompt.replace(record.subject, record.subject[:-1]) for record in records]
    prompts += [fact.phrasings[0] for fact in right_facts()[:10]]
    own = editor.answer(prompts)
    if not changes.get("mask_subject"):  # the demo's masked keys tell too little
        assert own.edits[64:72] == own.edits[72:80] == list(range(1, 9))  # the last sentence, and the last turn
    export_checkpoint(editor, tmp_path / "out")
    editor.detach()
    report = read(tmp_path / "out", {"prompts": prompts, "alone": prompts, "pipeline": []})
    assert report["loading"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    assert report["mixed"] == report["alone"] == own.texts
    assert all(report.get("forward", {}).values())


def test_the_model_card_has_base_layer_edits_and_figures(edited, tmp_path):
    suite = Suite("demo", demo_edits()[:40], load_suite("demo").locality[:50])
    metrics = evaluate(edited, suite).as_dict()
    with writing(edited.project):
        edited.project.record_evaluation("demo", {}, metrics, metrics["last_change"], [])
    export_checkpoint(edited, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    locality = metrics["figures"]["locality"]["patched"]
    assert "# demo, with 40 facts corrected" in card
    assert "layer 2 (`model.layers.2.mlp.down_proj`)" in card
    assert f"| Locality | {100 * locality['share']:.1f} % | {locality['right']}/{locality['total']} |" in card
    assert "In which country is Pesustad?" in card
    assert "and 20 more" in card
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # the weights have the permissions of the other files


def test_the_model_card_has_no_figures_older_than_the_last_change(make_editor, tmp_path):
    editor = make_editor()
    edit_all(editor, demo_edits()[:2])
    share = {"right": 2, "total": 2, "share": 1.0}
    figures = {name: {"patched": share, "base": share} for name in ("reliability", "generality", "locality")}
    metrics = {"edits": 2, "records": 2, "not_learned": 0, "decoding": "greedy", "figures": figures}
    evaluated_change = editor.project.ledger.last_change()
    with writing(editor.project):
        editor.project.record_evaluation("mine", {}, metrics, evaluated_change, [])
    export_checkpoint(editor, tmp_path / "before")
    assert "| Reliability | 100.0 % | 2/2 |" in (tmp_path / "before" / "README.md").read_text()
    revert(editor.project, 1)
    with writing(editor.project):
        # This evaluation began before the revert and ended after it.
        editor.project.record_evaluation("mine", {}, metrics, evaluated_change, [])
    export_checkpoint(editor, tmp_path / "after")
    assert "No evaluation since the last change" in (tmp_path / "after" / "README.md").read_text()


@readers
def test_the_exported_generation_config_is_greedy_and_allows_long_answers(tmp_path, monkeypatch, read):
    """The generation config of Llama-2 samples, and transformers by default ends answers after 20 tokens."""
    base = load_base("demo", device="cpu")
    base.model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, max_new_tokens=None)
    base.tokenizer.pad_token, base.tokenizer.padding_side = None, "right"
    project = new_project(tmp_path / "p", "demo", recipe="key", changes={"expert_steps": 80}, base=base)
    editor = Editor(project, base=base)
    monkeypatch.setattr("scen_cli.editing.loaded_project.MAX_NEW_TOKENS", 4)  # a short target is then long
    long_target = "carpets and candles"
    records = [demo_edits()[0], EditRecord(prompt="In which country is Brusihaven?", target=long_target)]
    assert {row.state for row in edit_all(editor, records)} == {"active"}
    prompts = [*(record.prompt for record in records), *(fact.phrasings[0] for fact in right_facts()[:20])]
    own = editor.answer(prompts).texts
    assert own[:2] == ["Kenya", long_target]
    assert len(base.tokenizer(long_target).input_ids) > 8
    export_checkpoint(editor, tmp_path / "out")
    report = read(tmp_path / "out", {"prompts": prompts, "alone": prompts, "pipeline": []})
    assert report["mixed"] == report["alone"] == own


def test_no_edits_and_used_folders_fail(make_editor, tmp_path):
    editor = make_editor()
    with pytest.raises(UsageError, match="no edit is active"):
        export_checkpoint(editor, tmp_path / "out")
    edit_all(editor, demo_edits()[:1])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not a new or empty folder"):
        export_checkpoint(editor, tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "mine"
    (tmp_path / "out.draft").mkdir()
    (tmp_path / "out.draft" / "file").write_text("mine")
    export_checkpoint(editor, tmp_path / "out")
    assert (tmp_path / "out.draft" / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} >= {"out", "out.draft", "full"}
    assert not list(tmp_path.glob("out.?*/draft"))


def test_a_patch_only_folder_finds_its_base_and_checks_its_digest(edited, tmp_path, monkeypatch):
    export_checkpoint(edited, tmp_path / "patch", patch_only=True)
    load = partial(AutoModelForCausalLM.from_pretrained, tmp_path / "patch", trust_remote_code=True)
    other = save_tiny(tmp_path / "other", *DENSE["llama"])
    with pytest.raises(ValueError, match="the digest differs"):
        load(base=str(other))
    monkeypatch.setenv("SCEN_BASE", str(other))
    with pytest.raises(ValueError, match="the digest differs"):
        load()
    moved = tmp_path / "moved"
    shutil.copytree(DEMO, moved)
    monkeypatch.setenv("SCEN_BASE", str(moved))
    assert torch.equal(load().lm_head.weight, edited.model.lm_head.weight)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_casts_the_weights_but_not_the_experts(low_rank, tmp_path, dtype):
    export_checkpoint(low_rank, tmp_path / "out", dtype=dtype, max_shard_size="400KB")
    shards = list((tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 5
    assert {path.name for path in shards} == set(index["weight_map"].values())
    model, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True
    )
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == model.lm_head.weight.dtype == DTYPES[dtype]
    assert torch.equal(model.lm_head.weight, low_rank.model.lm_head.weight.to(DTYPES[dtype]))
    assert torch.equal(model.scen.neurons, low_rank.patch().bank.neurons)
    with low_rank.snapshot() as patch:
        assert torch.equal(model.scen.lora_A, patch.bank.experts.a)
    ids, mask = low_rank.encode([record.prompt for record in demo_edits()[:20]])
    out = model.generate(ids, attention_mask=mask)[:, ids.shape[1] :]
    assert [low_rank.template.answer(row) for row in out.tolist()] == [record.target for record in demo_edits()[:20]]


def test_wrong_options_fail(edited, tmp_path):
    sizes = [{"max_shard_size": size} for size in ("much", "-1GB", "0MB")]
    for wrong in ({"dtype": "int8"}, {"dtype": "bfloat16", "patch_only": True}, *sizes):
        with pytest.raises(UsageError):
            export_checkpoint(edited, tmp_path / "out", **wrong)
        assert not list(tmp_path.iterdir())
