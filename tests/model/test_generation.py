"""Batches in which answers are generated."""

from __future__ import annotations

from scen_cli.model.generation import BATCH, answer_batches


def test_a_batch_has_no_more_different_edits_than_allowed():
    edits = [3, None, 1, 2, 3, None, 1, 4, 2, 5] * 20
    indices, lengths = range(len(edits)), [index % 7 for index in range(len(edits))]
    batches = list(answer_batches(indices, lengths, [False] * len(edits), edits, 2))
    assert sorted(index for batch in batches for index in batch) == list(indices)
    for batch in batches:
        assert len(batch) <= BATCH
        assert len({edits[index] for index in batch} - {None}) <= 2


def test_rows_with_little_room_are_generated_alone():
    edits, lengths = [1, 2, 1, 2] * 20, [5] * 80
    alone = [index in (4, 7) for index in range(80)]
    batches = list(answer_batches(range(80), lengths, alone, edits, 2))
    assert [batch for batch in batches if 4 in batch or 7 in batch] == [[4], [7]]
    assert list(answer_batches([], [], [], [], 2)) == []


def test_rows_without_an_edit_are_sorted_by_length():
    lengths = [9, 3, 7, 1] * 20
    batches = list(answer_batches(range(80), lengths, [False] * 80, [None] * 80, BATCH))
    assert [len(batch) for batch in batches] == [64, 16]
    assert [lengths[index] for batch in batches for index in batch] == sorted(lengths)
