"""Every supported architecture, on tiny random checkpoints, from `init` to a patched answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from scen_cli.data.records import EditRecord
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.model.base import load_base
from scen_cli.model.expert_stack import ExpertStack
from scen_cli.model.ffn import ARCHITECTURES, TARGET_MODULES, find_layer
from scen_cli.model.keys import read_keys
from scen_cli.model.patch import Patch
from scen_cli.model.routing import Routing
from tests.conftest import edit_all
from tests.model.tiny import DENSE, SMALL, save_tiny

RECORDS = [
    EditRecord(prompt="Where was Ada born?", target="Riga"),
    EditRecord(prompt="What does Velmora make?", target="candles and ink"),
]


def test_every_supported_architecture_is_tested():
    assert set(DENSE) == set(ARCHITECTURES)


@pytest.mark.parametrize("expert", ["full", "low-rank"])
@pytest.mark.parametrize("architecture", DENSE)
def test_edit_route_and_detach(architecture, expert, tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE[architecture])
    base = load_base(str(folder), device="cpu")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    rate = {"expert_lr": 3e-2} if expert == "full" else {}
    changes = {"expert": expert, "expert_steps": 60, "theta": 0.97, **rate}
    project = new_project(tmp_path / "project", str(folder), layer=1, recipe="key", changes=changes, base=base)
    editor = Editor(project, base=base)
    rows = edit_all(editor, RECORDS)
    assert [row.state for row in rows] == ["active", "active"], [row.reason for row in rows]

    prompts = [RECORDS[0].prompt, "Who is Otto and what does he want from Velmora today?", RECORDS[1].prompt]
    answers = editor.answer(prompts)
    assert answers.edits == [1, None, 2]
    assert [answers.texts[0], answers.texts[2]] == ["Riga", "candles and ink"]
    assert answers.texts[1] == editor.answer([prompts[1]], patched=False).texts[0]
    alone = [editor.answer([prompt]).texts[0] for prompt in prompts]
    assert alone == answers.texts  # padding changes nothing, also with absolute positions (GPT-2)

    editor.detach()
    after = base.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("target_module", TARGET_MODULES)
@pytest.mark.parametrize("architecture", DENSE)
def test_a_low_rank_expert_equals_the_dense_matrix_at_every_target_module(tmp_path, architecture, target_module):
    """Also: a full expert equal to the base changes nothing. Covers biases (GPT-2); Phi-3 has no separate W_up."""
    base = load_base(str(save_tiny(tmp_path / "base", *DENSE[architecture])), device="cpu")
    if (architecture, target_module) == ("phi3", "up"):
        with pytest.raises(UsageError, match="has no separate W_up"):
            find_layer(base.model, 1, target_module)
        return
    edited = find_layer(base.model, 1, target_module)
    (d, h), weight = edited.projection_shape, edited.base_weight()
    torch.manual_seed(0)
    a, b = torch.randn(4, h) / 8, torch.randn(4, d) / 8
    full = {0: weight, 1: weight + b.T @ a}
    bank = SimpleNamespace(neurons=torch.zeros(3, 64), experts=ExpertStack(a, b, torch.tensor([0, 0, 4]), full.get))
    ids = torch.tensor([[1, 30, 40, 50]] * 4)
    plain = base.model(input_ids=ids).logits
    patch = Patch(edited.projection, edited.down_proj, bank, Routing(theta=0.5))
    with patch.using(torch.tensor([-1, 0, 1, 2])):
        logits = base.model(input_ids=ids).logits
    patch.detach()
    assert torch.equal(logits[0], plain[0])
    assert torch.allclose(logits[1], plain[1], atol=1e-5)
    assert torch.allclose(logits[3], logits[2], atol=1e-5)
    assert (logits[2] - plain[2]).abs().max() > 1e-3


def test_the_key_is_the_input_of_down_proj_at_the_last_prompt_token(demo_base):
    edited = find_layer(demo_base.model, 2)
    ids = demo_base.tokenizer(["[INST]Where was Ada born?[/INST]"], return_tensors="pt").input_ids
    mlp = demo_base.model.model.layers[2].mlp
    inputs = []
    handle = mlp.register_forward_hook(lambda _module, args, _out: inputs.append(args[0]))
    demo_base.model(input_ids=ids)
    handle.remove()
    expected = mlp.act_fn(mlp.gate_proj(inputs[0])) * mlp.up_proj(inputs[0])
    assert torch.equal(read_keys(demo_base.model, edited.down_proj, ids, torch.ones_like(ids))[0], expected[0, -1])


def test_a_mixture_of_experts_is_rejected(tmp_path):
    settings = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
    base = load_base(str(save_tiny(tmp_path / "moe", "MixtralConfig", settings)), device="cpu")
    with pytest.raises(UsageError, match="mixture of experts: no single down projection"):
        find_layer(base.model, 1)


def test_an_unknown_architecture_is_rejected_with_a_list_of_supported_ones(tmp_path):
    settings = {**SMALL, "word_embed_proj_dim": 32, "ffn_dim": 64}
    base = load_base(str(save_tiny(tmp_path / "opt", "OPTConfig", settings)), device="cpu")
    with pytest.raises(UsageError, match="`opt`") as error:
        find_layer(base.model, 1)
    assert "llama" in error.value.hint


def test_a_missing_layer_is_rejected(demo_base):
    with pytest.raises(UsageError, match="layers 0 to 3"):
        find_layer(demo_base.model, 4)
    with pytest.raises(UsageError, match="layers 0 to 3"):
        find_layer(demo_base.model, -1)


def test_an_unknown_quantised_projection_is_rejected(tmp_path):
    base = load_base(str(save_tiny(tmp_path / "base", *DENSE["llama"])), device="cpu")
    mlp = base.model.model.layers[1].mlp

    class Int8Linear(torch.nn.Linear):
        pass

    mlp.down_proj = Int8Linear(64, 32, bias=False)
    with pytest.raises(UsageError, match="Int8Linear, not a plain matrix"):
        find_layer(base.model, 1)
