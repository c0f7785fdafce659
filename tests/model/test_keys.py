"""Where keys are read: at the last token or over all, and of which parts of a prompt."""

from __future__ import annotations

import pytest
import torch

from scen_cli.model.ffn import find_layer
from scen_cli.model.keys import KeyConfig, padded, read_keys, read_segments
from scen_cli.model.routing import largest
from scen_cli.model.subject_filter import SubjectFilter
from scen_cli.model.template import SecondTurn, make_template

CPU = torch.device("cpu")
START, OPEN, CLOSE, STOP = 1, 3, 4, 9
READING = KeyConfig("last", True, (START,), (OPEN,), (CLOSE,), frozenset({STOP}))


@pytest.mark.parametrize(
    ("tokens", "parts"),
    [
        ([1, 3, 20, 21, 22, 4], []),  # one sentence
        ([1, 3, 20, 21, 22, 9, 4], []),  # its own mark ends it
        ([1, 3, 20, 9, 21, 22, 23, 9, 4], [[1, 3, 21, 22, 23, 9, 4]]),
        ([1, 3, 20, 9, 21, 9, 22, 23, 24, 4], [[1, 3, 22, 23, 24, 4]]),  # the last of three
        ([1, 3, 20, 21, 22, 9, 30, 4], []),  # a mark or a space behind the last mark is no sentence
        ([1, 3, 5, 4, 6, 2, 3, 20, 21, 22, 4], [[1, 3, 20, 21, 22, 4]]),  # a second turn
        ([1, 3, 5, 4, 6, 3, 7, 9, 20, 21, 22, 4], [[1, 3, 7, 9, 20, 21, 22, 4], [1, 3, 20, 21, 22, 4]]),
        ([1, 3, 20, 21, 22, 4, 50, 51], []),  # an answer has begun: not a prompt's end
        ([1, 20, 21, 22, 4], []),  # another template
        ([1, 3, 4], []),  # nothing is asked
    ],
)
def test_parts_of_a_prompt(tokens, parts):
    assert READING.segments_of(tokens) == [tokens, *parts]
    assert KeyConfig("last").segments_of(tokens) == [tokens]


def test_without_a_template_the_last_sentence_is_what_follows_the_last_mark():
    key_config = KeyConfig("last", True, (START,), (), (), frozenset({STOP}))
    assert key_config.segments_of([1, 20, 21, 9, 30, 31, 32]) == [[1, 20, 21, 9, 30, 31, 32], [1, 30, 31, 32]]


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_padding_on_either_side_changes_no_key(demo_base, pool):
    edited = find_layer(demo_base.model, 2)
    rows = [[1, 3, 50, 60, 70, 4], [1, 3, 80, 4]]
    alone = [read_keys(demo_base.model, edited.down_proj, *padded([row], 0), pool)[0] for row in rows]
    left = read_keys(demo_base.model, edited.down_proj, *padded(rows, 0), pool)
    ids, mask = padded(rows, 0)
    right = read_keys(demo_base.model, edited.down_proj, ids[:, [2, 3, 4, 5, 0, 1]], mask[:, [2, 3, 4, 5, 0, 1]], pool)
    assert torch.allclose(left, torch.stack(alone), atol=1e-5)
    assert torch.allclose(right[1], alone[1], atol=1e-5)


def test_the_mean_is_over_all_tokens_but_the_first(demo_base):
    edited = find_layer(demo_base.model, 2)
    seen = []
    handle = edited.down_proj.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    ids, mask = padded([[1, 3, 50, 60, 4]], 0)
    demo_base.model(input_ids=ids)
    handle.remove()
    found = read_keys(demo_base.model, edited.down_proj, ids, mask, "mean")
    assert torch.allclose(found[0], seen[0][0, 1:].mean(dim=0), atol=1e-5)
    only = read_keys(demo_base.model, edited.down_proj, *padded([[1]], 0), "mean")
    assert torch.allclose(only[0], seen[0][0, 0], atol=1e-5)


def test_a_part_has_the_key_it_would_have_alone(demo_base):
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
    keys, owners = read_segments(demo_base.model, edited.down_proj, *padded(rows, 0), key_config)
    assert owners.tolist() == [0, 1, 2, 1, 2]
    assert torch.allclose(keys[3], keys[0], atol=1e-4)  # the second turn, read alone
    assert torch.nn.functional.cosine_similarity(keys[4], keys[0], dim=0) > 0.8  # a space more before it


def test_the_largest_activation_of_a_prompts_parts_counts():
    activations = torch.tensor([[0.1, 0.5], [0.2, 0.2], [0.9, 0.0], [0.3, 0.1]])
    assert (
        largest(activations, torch.tensor([0, 1, 0, 2]), 3).tolist()
        == torch.tensor([[0.9, 0.5], [0.2, 0.2], [0.3, 0.1]]).tolist()
    )
    assert largest(activations, torch.arange(4), 4) is activations


def test_a_second_look_blocks_edits_whose_subject_is_not_named():
    look = SubjectFilter([[[5, 6], [7]], [], [[6]]])
    blocked = look.blocked([[1, 5, 6], [1, 7], [1, 5, 9]], CPU)
    assert blocked.tolist() == [[False, False, False], [False, False, True], [True, False, True]]


def test_how_a_subject_may_be_written(demo_base):
    template = make_template(demo_base.tokenizer, demo_base.model, "[INST]{prompt}[/INST]")
    forms = template.subject_forms("Ivan Gromener", ["Where was Ivan Gromener born?"])
    look = SubjectFilter([forms])
    for prompt in ("Ivan Gromener was born where?", "Tell me (Ivan Gromener) more", "where was ivan gromener born?"):
        assert look.blocked([template.prompt_ids(prompt)], CPU).tolist() == [[False]], prompt
    assert look.blocked([template.prompt_ids("Where was Olga Gromener born?")], CPU).tolist() == [[True]]
    assert template.subject_forms("Ivan Gromener", ["Where was he born?"]) == []  # its own prompt must name it
    assert template.subject_forms(None, ["Where was Ivan Gromener born?"]) == []
