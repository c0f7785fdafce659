"""Keys: pooling, segments of a prompt, and the subject filter."""

from __future__ import annotations

import pytest
import torch

from scen_cli.model.ffn import find_layer
from scen_cli.model.keys import KeyConfig, padded, read_keys, read_segments
from scen_cli.model.routing import max_per_prompt
from scen_cli.model.template import SecondTurn, make_template

CPU = torch.device("cpu")
START, OPEN, CLOSE, STOP = 1, 3, 4, 9
KEY_CONFIG = KeyConfig("last", True, (START,), (OPEN,), (CLOSE,), frozenset({STOP}))


@pytest.mark.parametrize(
    ("tokens", "segments"),
    [
        ([1, 3, 20, 21, 22, 4], []),  # one sentence
        ([1, 3, 20, 21, 22, 9, 4], []),  # one sentence with its mark
        ([1, 3, 20, 9, 21, 22, 23, 9, 4], [[1, 3, 21, 22, 23, 9, 4]]),
        ([1, 3, 20, 9, 21, 9, 22, 23, 24, 4], [[1, 3, 22, 23, 24, 4]]),  # the last of three
        ([1, 3, 20, 21, 22, 9, 30, 4], []),  # a mark or a space after the last mark is no sentence
        ([1, 3, 5, 4, 6, 2, 3, 20, 21, 22, 4], [[1, 3, 20, 21, 22, 4]]),  # a second turn
        ([1, 3, 5, 4, 6, 3, 7, 9, 20, 21, 22, 4], [[1, 3, 7, 9, 20, 21, 22, 4], [1, 3, 20, 21, 22, 4]]),
        ([1, 3, 20, 21, 22, 4, 50, 51], []),  # an answer has begun: the prompt is not at the end
        ([1, 20, 21, 22, 4], []),  # another template
        ([1, 3, 4], []),  # an empty prompt
    ],
)
def test_segments_of_a_prompt(tokens, segments):
    assert KEY_CONFIG.segments_of(tokens) == [tokens, *segments]
    assert KeyConfig("last").segments_of(tokens) == [tokens]


def test_last_sentence_without_a_template():
    key_config = KeyConfig("last", True, (START,), (), (), frozenset({STOP}))
    assert key_config.segments_of([1, 20, 21, 9, 30, 31, 32]) == [[1, 20, 21, 9, 30, 31, 32], [1, 30, 31, 32]]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_on_either_side_changes_no_key(demo_base, pooling):
    edited = find_layer(demo_base.model, 2)
    rows = [[1, 3, 50, 60, 70, 4], [1, 3, 80, 4]]
    alone = [read_keys(demo_base.model, edited.down_proj, *padded([row], 0), pooling)[0] for row in rows]
    left = read_keys(demo_base.model, edited.down_proj, *padded(rows, 0), pooling)
    ids, mask = padded(rows, 0)
    right = read_keys(
        demo_base.model, edited.down_proj, ids[:, [2, 3, 4, 5, 0, 1]], mask[:, [2, 3, 4, 5, 0, 1]], pooling
    )
    assert torch.allclose(left, torch.stack(alone), atol=1e-5)
    assert torch.allclose(right[1], alone[1], atol=1e-5)


def test_mean_pooling_skips_the_first_token(demo_base):
    edited = find_layer(demo_base.model, 2)
    inputs = []
    handle = edited.down_proj.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    ids, mask = padded([[1, 3, 50, 60, 4]], 0)
    demo_base.model(input_ids=ids)
    handle.remove()
    key = read_keys(demo_base.model, edited.down_proj, ids, mask, "mean")
    assert torch.allclose(key[0], inputs[0][0, 1:].mean(dim=0), atol=1e-5)
    single = read_keys(demo_base.model, edited.down_proj, *padded([[1]], 0), "mean")
    assert torch.allclose(single[0], inputs[0][0, 0], atol=1e-5)


def test_a_segment_has_the_key_of_the_same_prompt_alone(demo_base):
    template = make_template(demo_base.tokenizer, demo_base.model, "[INST]{prompt}[/INST]")
    frame = template.frame()
    assert [demo_base.tokenizer.convert_ids_to_tokens(list(ids)) for ids in (frame.opening, frame.closing)] == [
        ["[INST]"],
        ["[/INST]"],
    ]
    key_config = KeyConfig("last", True, frame.start, frame.opening, frame.closing, template.sentence_ends())
    question = "Where was Ivan Gromener born?"
    rows = [template.prompt_ids(p) for p in (question, SecondTurn("Hi", "Hello", question), f"Hello. {question}")]
    edited = find_layer(demo_base.model, 2)
    keys, rows_of_keys = read_segments(demo_base.model, edited.down_proj, *padded(rows, 0), key_config)
    assert rows_of_keys.tolist() == [0, 1, 2, 1, 2]
    assert torch.allclose(keys[3], keys[0], atol=1e-4)  # the second turn, read alone
    assert torch.nn.functional.cosine_similarity(keys[4], keys[0], dim=0) > 0.8  # with one more space before it


def test_max_per_prompt_takes_the_maximum_over_segments():
    activations = torch.tensor([[0.1, 0.5], [0.2, 0.2], [0.9, 0.0], [0.3, 0.1]])
    assert (
        max_per_prompt(activations, torch.tensor([0, 1, 0, 2]), 3).tolist()
        == torch.tensor([[0.9, 0.5], [0.2, 0.2], [0.3, 0.1]]).tolist()
    )
    assert max_per_prompt(activations, torch.arange(4), 4) is activations
