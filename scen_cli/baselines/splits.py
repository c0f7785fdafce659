"""A suite in three parts that share no edit: what is scored, what settings are tuned on, what methods may train on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.errors import UsageError
from scen_cli.evaluation.samples import LOCALITY_PROMPTS

TRAINING = 400  # edits that methods may train on before the first edit
TUNING = 50  # edits that settings are tuned on, at most
TUNING_LOCALITY = 100  # locality prompts, at most; and no more than a quarter of them


@dataclass(frozen=True)
class Parts:
    """Edits and locality prompts that are scored (`test`) and tuned on (`tuning`), and edits to train on."""

    test: Sequence[EditRecord]
    test_locality: Sequence[str]
    tuning: Sequence[EditRecord]
    tuning_locality: Sequence[str]
    training: Sequence[EditRecord]


def split(suite: Suite, edits: int, unedited: Collection[str], fits: Callable[[EditRecord], bool]) -> Parts:
    """The suite's first edits are scored; some of the others, at most half of them, are tuned on, and the rest is there
    to train on. No prompt of the unedited ones is scored as locality, nor one that an edit claims; of an edit
    that occurs more than once the first alone counts, and none whose rephrase is one of those prompts.

    Raises `UsageError` if there is nothing to tune on.
    """
    known: dict[str, EditRecord] = {}
    for record in suite.edits:
        if fits(record) and not {record.prompt, *record.rephrases} & set(unedited):
            known.setdefault(record.prompt, record)
    records = list(known.values())
    test = records[:edits]
    scored = {text for one in test for text in (one.prompt, *one.rephrases)}
    rest = [one for one in records[edits:] if not {one.prompt, *one.rephrases} & scored]
    tuned = min(TUNING, len(test), len(rest) // 2)
    if not tuned:
        raise UsageError(
            f"suite `{suite.name}` has {len(records)} edits: none is left to tune on beside the {len(test)} scored",
            hint="fewer `--edits`, or more data",
        )
    tuning, training = rest[:tuned], rest[tuned : tuned + TRAINING]
    claimed = {text for one in records for text in (one.prompt, *one.rephrases)} | set(unedited)
    locality = [prompt for prompt in dict.fromkeys(suite.locality) if prompt not in claimed]
    kept_back = min(TUNING_LOCALITY, len(locality) // 4)
    test_locality = locality[: len(locality) - kept_back][:LOCALITY_PROMPTS]
    return Parts(test, test_locality, tuning, locality[len(locality) - kept_back :], training)
