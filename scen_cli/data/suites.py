"""Suites: which facts to edit, and which prompts must not change; and the questions of the other studies.

`demo` and `real-facts` are part of the package. Any other name is a file of edit records, in any form that the field
publishes. `zsre`, `counterfact` and `hallucination` are such files too; their names do not change if the file moves.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scen_cli.data.dataset_forms import SAME_RELATION, SAME_SUBJECT
from scen_cli.data.entries import bad_lines, good_records, parse_file
from scen_cli.data.json_stream import describe_error, read_items
from scen_cli.data.records import EditRecord, Neighbour, clean_text
from scen_cli.demo.world import SEEN_PHRASINGS, editable_facts, right_facts
from scen_cli.errors import UsageError

NEED_DATA = ("zsre", "counterfact", "hallucination")
PACKAGED = Path(__file__).parent.parent / "demo"


@dataclass(frozen=True)
class Suite:
    """Edits in order, and locality prompts, whose answers must not change.

    A suite without locality prompts is scored on its records that were never edited.
    """

    name: str
    edits: list[EditRecord]
    locality: list[str]


def load_suite(name: str, data: Path | None = None, locality: Path | None = None) -> Suite:
    """Load a suite.

    Args:
        name: `demo`, `real-facts`, one of `NEED_DATA`, or a file of edit records.
        data: The file of a suite in `NEED_DATA`.
        locality: A file of prompts that must not change.

    Raises:
        UsageError: A file is missing or cannot be read.
    """
    if name in ("demo", "real-facts"):
        if data is not None:
            raise UsageError(f"the {name} suite has its own data: `--data` is for others")
        if name == "demo":
            edits, unedited = demo_edits(), [fact.phrasings[0] for fact in right_facts()]
        else:
            edits, unedited = real_facts(), read_prompts(PACKAGED / "unrelated.jsonl")
        return Suite(name, edits, read_prompts(locality) if locality else unedited)
    if name in NEED_DATA and data is None:
        raise UsageError(f"the {name} suite needs its data: `--data FILE`")
    if name not in NEED_DATA and data is not None:
        known = ", ".join(NEED_DATA)
        raise UsageError(f"`{name}` is a file already: `--data` is for {known}", hint="use `--locality FILE`?")
    label, path = (name, str(data)) if data else (Path(name).name, name)
    return Suite(label, good_records(path), read_prompts(locality) if locality else [])


def real_facts() -> list[EditRecord]:
    """Facts of the real world that SmolLM2 gets wrong, with rephrases and other questions about the same subjects."""
    return good_records(str(PACKAGED / "real_facts.jsonl"))


def demo_edits() -> list[EditRecord]:
    """One edit per fact that the demo base has wrong.

    The prompt is the fact's first phrasing; the other phrasings of the base's training data are rephrases. Locality
    prompts are a fact of the same subject and one of the same relation that the base has right, if there are any.
    """
    right = right_facts()
    edits = []
    for position, fact in enumerate(editable_facts()):
        peers = [other for other in right if other.relation == fact.relation]
        near = [(SAME_SUBJECT, other) for other in right if other.subject == fact.subject][:1]
        near.append((SAME_RELATION, peers[position % len(peers)]))
        edits.append(
            EditRecord(
                prompt=fact.phrasings[0],
                target=fact.answer,
                subject=fact.subject,
                rephrases=fact.phrasings[1:SEEN_PHRASINGS],
                locality=tuple(Neighbour(prompt=n.phrasings[0], target=n.answer, kind=kind) for kind, n in near),
            )
        )
    return edits


def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSONL or JSON file of objects with `prompt` or `text`."""
    prompts = []
    hint = 'expected lines such as {"prompt": "Who wrote Faust?"}'
    for line, item in read_items(str(path)):
        if isinstance(item, Exception):
            raise UsageError(f"{path.name}:{line}: no `prompt` here: {describe_error(item)}", hint=hint)
        try:
            prompts.append(clean_text(item["prompt"] if "prompt" in item else item["text"]))  # type: ignore
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UsageError(f"{path.name}:{line}: no `prompt` here", hint=hint) from error
    if not prompts:
        raise UsageError(f"`{path}` holds no prompts")
    return prompts


@dataclass(frozen=True)
class Passages:
    """`edits` (WikiBio-E), `accurate` sentences (WikiBio-A) and `openwebtext`: whole texts."""

    edits: Suite
    accurate: list[EditRecord]
    openwebtext: list[str]


def load_passages(data: Path | None, accurate: Path | None, openwebtext: Path | None) -> Passages:
    """Read the suite's files; the last two are optional. Raises `UsageError` if one cannot be read."""
    edits = load_suite("hallucination", data)
    entries = parse_file(str(accurate)) if accurate else []
    records = [entry.record for entry in entries if entry.record is not None]
    if len(records) < len(entries):
        raise UsageError(bad_lines(entries))
    return Passages(edits, records, read_prompts(openwebtext) if openwebtext else [])


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
