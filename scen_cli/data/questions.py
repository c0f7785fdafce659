"""Records as questions: what is true to be taught and asked, and a seeded split of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError


def as_question(record: EditRecord) -> EditRecord:
    """The record with what is true as its target, where its data says so: a counterfactual target is for
    editing, not for teaching. What would follow from the counterfactual goes."""
    if not record.truth:
        return record
    return record.model_copy(update={"target": record.truth[0], "portability": ()})


def split(records: Sequence[EditRecord], train: int, seed: int) -> tuple[list[EditRecord], list[EditRecord]]:
    """D_train and D_test, by a seeded shuffle. Raises `UsageError` if nothing would be left for either."""
    if not 0 < train < len(records):
        raise UsageError(
            f"{train} questions for D_train leave none for D_test: the file has {len(records)} different ones",
            hint=f"e.g. `--train {len(records) // 2}`",
        )
    shuffled = random.Random(seed).sample(list(records), len(records))
    return shuffled[:train], shuffled[train:]
