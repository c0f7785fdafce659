"""Batches change nothing: alone, a prompt has the route and the greedy answer that it has beside prompts of other
lengths. In every architecture, with every kind of rope, with sliding windows, with padding on either side."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from scen_cli.model.base import Base
from scen_cli.model.batched_keys import BATCH, read_segment_keys
from scen_cli.model.expert_stack import ExpertStack
from scen_cli.model.ffn import find_layer
from scen_cli.model.generation import generate_answers
from scen_cli.model.keys import KeyConfig, padded, positions_of, rope_boundary
from scen_cli.model.known_bases import DEMO
from scen_cli.model.patch import Patch
from scen_cli.model.routing import BASE, Routing, normalize_neurons
from scen_cli.model.template import Template
from tests.model.tiny import DENSE, tiny_model

BOUNDARY, WINDOW, ANSWER = 32, 8, 10
# Most prompts are longer than the window. The fourth crosses the boundary, the third only while its answer grows. One
# alone crosses it: `dynamic` keeps the frequencies of the longest sequence until a short one comes.
LENGTHS = [5, 19, 27, 44, 12]
PERIOD, CLOSING = 9, 7  # tokens
KEYS = KeyConfig(segments=True, start=(1,), closing=(CLOSING,), sentence_ends=frozenset({PERIOD}))
ORIGINAL = {"original_max_position_embeddings": BOUNDARY}
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, **ORIGINAL},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0], **ORIGINAL},
}
OF_PHI3 = ("default", "longrope")  # it refuses others
WINDOWED = ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
CASES = [
    *((name, rope, None) for name in DENSE if name != "gpt2" for rope in (OF_PHI3 if name == "phi3" else ROPES)),
    *((name, rope, WINDOW) for name in WINDOWED for rope in OF_PHI3),
    ("gpt2", "none", None),
]
QUICK = [
    ("llama", "dynamic", None),
    ("llama", "longrope", None),
    ("mistral", "default", WINDOW),
    ("gemma3_text", "longrope", WINDOW),
    ("phi3", "longrope", None),
    ("gpt2", "none", None),
]


def model_of(name: str, rope: str, window: int | None):
    config_class, settings = DENSE[name]
    settings = {**settings}
    if rope != "none":
        ropes = {"rope_type": rope, "rope_theta": 10000.0, **ROPES[rope]}
        other = {"rope_type": "default", "rope_theta": 10000.0}
        by_layer = {"full_attention": ropes, "sliding_attention": other}
        settings["rope_parameters"] = by_layer if name == "gemma3_text" else ropes
    if rope == "longrope" and name == "phi3":
        settings |= ORIGINAL
    if rope == "dynamic":  # it scales with what exceeds the context
        settings["max_position_embeddings"] = BOUNDARY
    if name in WINDOWED:
        settings["sliding_window"] = window
    if name.startswith(("qwen", "gemma2", "gemma3")):
        kinds = ["full_attention", "sliding_attention" if window else "full_attention", "full_attention"]
        settings |= {"layer_types": kinds, "use_sliding_window": bool(window), "sliding_window": window or 4096}
    return tiny_model(config_class, settings)


class Batches:
    """A tiny base with three low-rank experts, whose neurons are keys of the first three prompts."""

    def __init__(self, name: str, rope: str, window: int | None) -> None:
        self.model, tokenizer = model_of(name, rope, window), AutoTokenizer.from_pretrained(DEMO)
        self.base, self.template = Base(self.model, tokenizer, Path()), Template(tokenizer, "none", 2, (2,))
        self.edited = find_layer(self.model, 2)
        torch.manual_seed(1)
        self.rows = [[1, *torch.randint(20, 800, (n - 2,)).tolist(), CLOSING] for n in LENGTHS]
        for row in self.rows[1:]:
            row[-6] = PERIOD
        keys = torch.cat([self.keys([row])[:1] for row in self.rows[:3]])
        experts = ExpertStack(torch.randn(12, 64), torch.randn(12, 32) / 8, torch.tensor([4] * 3), lambda _row: keys)
        bank = SimpleNamespace(neurons=normalize_neurons(keys, True), biases=torch.zeros(3), experts=experts)
        bank.whitening = bank.subject_filter = None
        routing = Routing(theta=0.99, cosine=True, key_config=KEYS)
        self.patch = Patch(self.edited.projection, self.edited.down_proj, bank, routing)

    def keys(self, rows, key_config=KEYS):
        keys, owners = read_segment_keys(self.base, self.edited, rows, key_config)
        return nn.functional.normalize(keys[owners.argsort(stable=True)], dim=1)

    def answers(self, rows):
        def generate(_batch, ids, mask, options):
            return self.patch.generate(self.model, self.model.generate, ids, mask, **options)[0]

        return generate_answers(self.base, self.template, rows, generate, max_new_tokens=ANSWER)


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES],
    ids=lambda case: "-".join([case[0], case[1], *(["window"] if case[2] else [])]),
)
def batches(request):
    return Batches(*request.param)


def test_the_route_of_a_prompt_is_the_same_alone_and_in_a_batch(batches):
    alone = [batches.patch.route(batches.model, torch.tensor([row])) for row in batches.rows]
    choice = torch.cat([route.choice for route in alone])
    assert choice.tolist()[:3] == [0, 1, 2]
    assert BASE in choice.tolist()
    ids, mask = padded(batches.rows, 0)
    right = [tensor.flip(1) for tensor in padded([row[::-1] for row in batches.rows], 0)]
    for side in ((ids, mask), right):
        route = batches.patch.route(batches.model, *side)
        assert torch.equal(route.choice, choice)
        assert torch.allclose(route.activations, torch.cat([route.activations for route in alone]), atol=1e-5, rtol=0)
        with batches.patch.deciding(batches.model, *side) as decided:  # in a forward that holds the whole batch
            batches.model(input_ids=side[0], attention_mask=side[1], position_ids=positions_of(side[1]))
        assert torch.equal(decided.choice, choice)


def test_the_answer_to_a_prompt_is_the_same_alone_and_in_a_batch(batches):
    alone = [batches.answers([row])[0] for row in batches.rows]
    assert batches.answers(batches.rows) == alone
    assert sum(map(len, alone)) > len(alone)
    with batches.patch.using(torch.tensor([BASE])):
        plain = batches.model.generate(torch.tensor([batches.rows[1]]), max_new_tokens=ANSWER, do_sample=False)
    assert alone[1] != batches.template.until_end(plain[0, LENGTHS[1] :].tolist())  # the expert answers


def test_the_keys_of_a_prompt_are_the_same_alone_and_in_a_batch(batches):
    together, alone = batches.keys(batches.rows), [batches.keys([row]) for row in batches.rows]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_the_keys_behind_a_long_opening_are_the_same_alone_and_in_a_batch(batches):
    opening = torch.randint(20, 800, (WINDOW + 4,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [[*opening, *range(30 + n, 33 + n + n % 17)] for n in range(BATCH + 6)]
    together, some = batches.keys(rows, KeyConfig()), [0, 5, 16, BATCH]
    alone = torch.cat([batches.keys([rows[index]], KeyConfig()) for index in some])
    assert torch.allclose(together[some], alone, atol=1e-5, rtol=0)


LONG = {"rope_type": "longrope", **ORIGINAL}
DYNAMIC, PLAIN = {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "default"}


@pytest.mark.parametrize(
    ("settings", "boundary"),
    [
        ({"rope_parameters": LONG}, BOUNDARY),
        ({"rope_parameters": {"rope_type": "longrope"}, **ORIGINAL}, BOUNDARY),
        ({"rope_parameters": {"rope_type": "longrope"}}, 128),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}, **ORIGINAL}, BOUNDARY),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 128),
        ({"rope_parameters": DYNAMIC}, 128),
        ({"rope_parameters": {"full_attention": LONG, "sliding_attention": PLAIN}}, BOUNDARY),
        ({"rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": None}}, 128),
        ({"rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": LONG}}, BOUNDARY),
        ({"rope_parameters": {"rope_type": "yarn", **ORIGINAL}}, None),
        ({"rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}}, None),
        ({"rope_scaling": None}, None),
        ({}, None),
    ],
)
def test_the_boundary_is_found_in_every_layout_of_a_config(settings, boundary):
    """transformers 4 has `rope_scaling` and `type`; exports run there too."""
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=128, **settings))
    assert rope_boundary(model) == boundary
