"""Records as questions with true answers, for fine-tuning and tests of the base, and their split."""

from __future__ import annotations

import random
from collections.abc import Sequence

from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError


def as_question(record: EditRecord) -> EditRecord:
    """The record with the true answer as its target, where the data gives one.

    A counterfactual target is for editing only. Its portability questions are removed: they follow from it.
    """
    if not record.truth:
        return record
    return record.model_copy(update={"target": record.truth[0], "portability": ()})


def train_test_split(records: Sequence[EditRecord], train: int, seed: int) -> tuple[list[EditRecord], list[EditRecord]]:
    """D_train and D_test, by a seeded shuffle; `train` records go to D_train. Raises `UsageError` if one is empty."""
    if not 0 < train < len(records):
        raise UsageError(
            f"{train} questions for D_train leave none for D_test: the file has {len(records)} different ones",
            hint=f"e.g. `--train {len(records) // 2}`",
        )
    shuffled = random.Random(seed).sample(list(records), len(records))
    return shuffled[:train], shuffled[train:]
