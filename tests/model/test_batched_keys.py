"""Keys of many prompts equal those of each prompt alone, with an opening that is computed once and without."""

from __future__ import annotations

import pytest
import torch

from scen_cli.model.batched_keys import BATCH, MIN_OPENING, read_segment_keys
from scen_cli.model.ffn import find_layer
from scen_cli.model.keys import KeyConfig, padded, read_keys

OPENING = list(range(20, 20 + MIN_OPENING))


@pytest.mark.parametrize(("opening", "pooling"), [(OPENING, "last"), (OPENING[:-1], "last"), (OPENING, "mean")])
def test_keys_of_many_sequences_are_those_of_each_alone(demo_base, opening, pooling):
    edited = find_layer(demo_base.model, 2)
    sequences = [opening + list(range(30 + index, 33 + index + index % 9)) for index in range(2 * BATCH + 3)]
    keys, owners = read_segment_keys(demo_base, edited, sequences, KeyConfig(pooling))
    assert owners.tolist() == list(range(len(sequences)))
    for index in (0, 7, BATCH, 2 * BATCH + 2):
        alone = read_keys(demo_base.model, edited.down_proj, *padded([sequences[index]], 0), pooling)
        assert torch.allclose(keys[[index]], alone, atol=1e-4)


def test_segments_follow_the_sequences_they_belong_to(demo_base):
    edited = find_layer(demo_base.model, 2)
    config = KeyConfig(segments=True, opening=(3,), closing=(4,), sentence_ends=frozenset({9}))
    sequences = [[3, 5, 6, 7, 4], [3, 5, 6, 9, 10, 11, 12, 13, 4]]
    keys, owners = read_segment_keys(demo_base, edited, sequences, config)
    assert owners.tolist() == [0, 1, 1]
    alone = read_keys(demo_base.model, edited.down_proj, *padded([[3, 10, 11, 12, 13, 4]], 0))
    assert torch.allclose(keys[[2]], alone, atol=1e-4)
