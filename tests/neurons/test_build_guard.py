"""The guard: the source of its prompts, their splits, and the detection of changed files and rows."""

from __future__ import annotations

import json

import pytest
import torch

from scen_cli.data.question_bank import bank_questions
from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import DamageFound
from scen_cli.model.generation import sample_prompts
from scen_cli.model.known_bases import DEFAULT_TEMPLATE
from scen_cli.model.template import make_template
from scen_cli.neurons.build_guard import BANK_QUESTIONS, MIN_PROMPTS, SAMPLED_BESIDE_BANK
from scen_cli.neurons.neuron_fit import whitening_of
from scen_cli.project.check import verify
from tests.conftest import edit_all

FAST = {"expert_steps": 1, "extra_steps": 0, "prompt_augmentations": 0, "require_learned": False}


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("guard") / "prompts.jsonl"
    lines = [json.dumps({"prompt": fact.phrasings[1]}) for fact in right_facts()[:400]]
    file.write_text("\n".join(lines))
    return file


def test_sampled_prompts_depend_on_the_seed_only(demo_base):
    template = make_template(demo_base.tokenizer, demo_base.model, DEFAULT_TEMPLATE)
    state = torch.get_rng_state()
    prompts = sample_prompts(demo_base, template, 60, seed=3)
    assert torch.equal(torch.get_rng_state(), state)  # the global random state is unchanged
    assert prompts == sample_prompts(demo_base, template, 60, seed=3)
    assert prompts != sample_prompts(demo_base, template, 60, seed=4)
    assert len(set(prompts)) == 60
    assert not any("[" in prompt for prompt in prompts)


def test_splits_are_disjoint_and_hold_the_keys_of_their_prompts(demo_base, demo_guard, tmp_path):
    project = new_project(tmp_path / "p", "demo", guard=demo_guard, base=demo_base)
    guard = project.guard()
    splits = {name: guard.split(name) for name in ("fit", "calibration", "report")}
    assert [len(prompts) for prompts, _keys, _rows in splits.values()] == [500, 1000, 500]
    assert len({prompt for prompts, _keys, _rows in splits.values() for prompt in prompts}) == 2000
    model = PatchedModel(project, base=demo_base)
    for prompts, keys, rows in splits.values():
        assert set(rows.tolist()) == set(range(len(prompts)))
        first = [rows.tolist().index(row) for row in (0, 7)]
        assert torch.allclose(torch.from_numpy(keys[first]), model.keys([prompts[0], prompts[7]]), atol=1e-4)
    whitening = whitening_of(torch.from_numpy(splits["fit"][1]))
    key = model.keys(["Where was Ada born?"])
    assert torch.allclose(whitening(key), model._whitening(key), atol=1e-5)


def test_init_reads_a_guard_file(demo_base, prompts_file, tmp_path, scen):
    at = ("--dir", tmp_path / "p")
    shown = scen("init", "--model", "demo", "--guard", prompts_file, *at, "--device", "cpu").stdout
    assert f"400 prompts of {prompts_file}" in shown.replace("\n", "")
    assert json.loads(scen("status", "--json", *at).stdout)["recipe"]["name"] == "closed-form"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "One?"}\n{"prompt": "Two?"}', "has 2 usable guard prompts"),
        ('{"a": 1}', "no `prompt` here"),
    ],
)
def test_init_rejects_an_unusable_guard_file(demo_base, tmp_path, scen, content, message):
    file = tmp_path / "guard.jsonl"
    file.write_text(content)
    result = scen("init", "--model", "demo", "--guard", file, "--dir", tmp_path / "p", code=2)
    assert message in result.stderr
    assert not (tmp_path / "p" / "scen.db").exists()


def test_init_rejects_a_guard_that_is_too_small_for_its_rate(tmp_path, scen):
    file = tmp_path / "guard.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"Who is number {n}?"}) for n in range(60)))
    at = ("--guard", file, "--dir", tmp_path / "p")
    assert "30 guard prompts are too few for a rate of 0.01" in scen("init", "--model", "demo", *at, code=2).stderr
    assert not (tmp_path / "p" / "scen.db").exists()
    scen("init", "--model", "demo", "--set", "false_activation=0.05", *at)


def test_a_base_that_samples_no_prompts_has_a_guard_of_the_question_bank(tmp_path):
    from scen_cli.model.base import load_base
    from tests.model.tiny import DENSE, save_tiny

    base = load_base(str(save_tiny(tmp_path / "base", *DENSE["llama"])), device="cpu")
    project = new_project(tmp_path / "p", str(tmp_path / "base"), layer=1, base=base)
    asked = set(bank_questions(BANK_QUESTIONS, project.settings["seed"]))
    prompts = [prompt.prompt for prompt in project.ledger.guard()]
    assert len(prompts) >= MIN_PROMPTS
    assert len(set(prompts) & asked) >= len(prompts) - SAMPLED_BESIDE_BANK


def test_only_the_report_split_is_evaluated(make_editor, demo_base):
    from scen_cli.data.suites import Suite
    from scen_cli.evaluation.evaluate_project import evaluate

    editor = make_editor("closed-form", **FAST)
    edit_all(editor, demo_edits()[:2])
    prompts = {name: editor.project.guard().split(name)[0][:5] for name in ("fit", "calibration", "report")}
    suite = Suite("mine", demo_edits()[:2], [prompt for split in prompts.values() for prompt in split])
    evaluated = [s.prompt for s in evaluate(editor, suite, quick=True).samples if s.role == "locality"]
    assert evaluated == prompts["report"]


def test_a_changed_guard_file_is_damage(make_editor, demo_base):
    project = make_editor("closed-form", **FAST).project
    file = next(project.folder.glob("guard-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamageFound, match="is not the guard that was committed"):
        PatchedModel(project, base=demo_base)
    assert [problem.where for problem in verify(project, deep=True)] == [file.name]


@pytest.mark.parametrize("change", ["update guard set prompt = 'x' where id = 3", "delete from guard where id = 9"])
def test_changed_guard_rows_are_damage(make_editor, change):
    project = make_editor("closed-form", **FAST).project
    project.ledger.db.execute(change)
    assert [problem.what for problem in verify(project)] == ["the guard's prompts are not those that were committed"]
    with pytest.raises(DamageFound, match="rows in `scen.db` are not those"):
        project.guard()


def test_a_sampled_guard_prompt_on_the_edits_subject_is_excluded(make_editor):
    """In a guard that the user gave it counts: the user wants it to stay."""
    editor = make_editor("closed-form", **FAST, theta=0.1, subject_filter=False)
    edit_all(editor, [demo_edits()[0]])
    key = editor.keys([demo_edits()[0].rephrases[0]])
    split = editor.index.calibration_split
    split.prompts[0] = demo_edits()[0].rephrases[0]
    split.keys[split._prompt_of_key == 0] = editor.index.prepare_keys(key)
    split.topics = type(split.topics)(split.prompts)
    match_keys = [(demo_edits()[0].prompt, demo_edits()[0].subject)]
    activations = (split.keys @ editor.index.neurons.all().T)[:, 0]
    assert split.max_per_prompt(activations, match_keys)[0] == -torch.inf
    split._from_user = True
    assert split.max_per_prompt(activations, match_keys)[0] > 0.7


def test_calibrate_does_not_remove_the_users_guard_file(make_editor, scen):
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, demo_edits()[:2])
    editor.detach()
    own_file = editor.project.folder / "guard-new.jsonl"
    own_file.write_text("".join(f'{{"prompt": "{record.prompt}"}}\n' for record in demo_edits()[300:500]))
    scen("calibrate", "--guard", own_file, "--false-activation", "0.05", "--dir", editor.project.folder)
    assert own_file.exists()
    assert len(list(editor.project.folder.glob("guard-*.safetensors"))) == 1
    assert verify(editor.project) == []
