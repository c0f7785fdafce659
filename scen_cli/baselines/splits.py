"""Three splits of a suite without a shared edit: to score, to tune settings on, and to train methods on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.errors import UsageError
from scen_cli.evaluation.samples import LOCALITY_PROMPTS

TRAINING = 400  # most edits to train on
TUNING = 50  # most edits to tune on
TUNING_LOCALITY = 100  # most locality prompts to tune on, but at most a quarter of all


@dataclass(frozen=True)
class Splits:
    """Edits and locality prompts to score (`test`) and to tune on (`tuning`), and edits to train on."""

    test: Sequence[EditRecord]
    test_locality: Sequence[str]
    tuning: Sequence[EditRecord]
    tuning_locality: Sequence[str]
    training: Sequence[EditRecord]


def split_suite(suite: Suite, edits: int, unedited: Collection[str], fits: Callable[[EditRecord], bool]) -> Splits:
    """Split a suite. Of edits with the same prompt the first counts.

    Args:
        suite: Its first edits are scored; at most half of the others are tuned on, the rest is for training.
        edits: How many edits to score.
        unedited: Prompts that no edit claims. They are no locality prompts, and edits with one of them are left out.
        fits: Whether the base can take an edit; others are left out.

    Raises:
        UsageError: No edit is left to tune on.
    """
    known: dict[str, EditRecord] = {}
    for record in suite.edits:
        if fits(record) and not _prompts([record]) & set(unedited):
            known.setdefault(record.prompt, record)
    records = list(known.values())
    test = records[:edits]
    scored = _prompts(test)
    others = [record for record in records[edits:] if not _prompts([record]) & scored]
    tuned = min(TUNING, len(test), len(others) // 2)
    if not tuned:
        raise UsageError(
            f"suite `{suite.name}` has {len(records)} edits: none is left to tune on besides the {len(test)} scored",
            hint="fewer `--edits`, or more data",
        )
    claimed = _prompts(records) | set(unedited)
    locality = [prompt for prompt in dict.fromkeys(suite.locality) if prompt not in claimed]
    scored_locality = len(locality) - min(TUNING_LOCALITY, len(locality) // 4)
    return Splits(
        test=test,
        test_locality=locality[:scored_locality][:LOCALITY_PROMPTS],
        tuning=others[:tuned],
        tuning_locality=locality[scored_locality:],
        training=others[tuned : tuned + TRAINING],
    )


def _prompts(records: Iterable[EditRecord]) -> set[str]:
    """All prompts and rephrases of records."""
    return {text for record in records for text in (record.prompt, *record.rephrases)}
