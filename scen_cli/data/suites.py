"""Suites: which facts to edit, and which prompts must not change.

`demo` is embedded. Any other name is a file of edit records, in any form the field publishes.
`zsre` and `counterfact` are such files too, under a name that stays when the file moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scen_cli.data.dataset_forms import SAME_RELATION, SAME_SUBJECT
from scen_cli.data.entries import good_records
from scen_cli.data.json_stream import complaint, read_items
from scen_cli.data.records import EditRecord, Neighbour, clean_text
from scen_cli.demo.facts import editable_facts, right_facts
from scen_cli.demo.world import SEEN_PHRASINGS, Fact
from scen_cli.errors import UsageError

NEED_DATA = ("zsre", "counterfact", "hallucination")


@dataclass(frozen=True)
class Suite:
    """Edits in order, and locality prompts: questions whose answers must stay as they are.

    A suite without locality prompts of its own is scored on those of its records that were never
    edited: the same kind of question, which is the hardest sort.
    """

    name: str
    edits: list[EditRecord]
    locality: list[str]


def load_suite(name: str, data: Path | None = None, locality: Path | None = None) -> Suite:
    """Load a suite: `data` is the file of a named one, `locality` a file of prompts that must not change.

    Raises `UsageError` for a missing or unreadable file.
    """
    if name == "demo":
        if data is not None:
            raise UsageError("the demo suite has its own data: `--data` is for others")
        own, prompts = demo_edits(), [fact.phrasings[0] for fact in right_facts()]
        return Suite(name, own, read_prompts(locality) if locality else prompts)
    if name in NEED_DATA:
        if data is None:
            raise UsageError(f"the {name} suite needs its data: `--data FILE`")
        path, shown = str(data), name
    else:
        if data is not None:
            known = ", ".join(NEED_DATA)
            raise UsageError(f"`{name}` is a file already: `--data` is for {known}", hint="`--locality FILE`, perhaps?")
        path, shown = name, Path(name).name
    return Suite(shown, good_records(path), read_prompts(locality) if locality else [])


def demo_edits() -> list[EditRecord]:
    """One edit per fact the demo base has wrong: its first phrasing, with the others that occur in
    the base's training as rephrases; beside it a fact of the same subject and one of the same relation
    that the base has right, where there is one."""
    right = right_facts()
    of_subject: dict[str, list[Fact]] = {}
    of_relation: dict[str, list[Fact]] = {}
    for fact in right:
        of_subject.setdefault(fact.subject, []).append(fact)
        of_relation.setdefault(fact.relation, []).append(fact)
    edits = []
    for position, fact in enumerate(editable_facts()):
        peers = of_relation[fact.relation]
        near = [(SAME_SUBJECT, other) for other in of_subject.get(fact.subject, [])[:1]]
        near.append((SAME_RELATION, peers[position % len(peers)]))
        edits.append(
            EditRecord(
                prompt=fact.phrasings[0],
                target=fact.answer,
                subject=fact.subject,
                rephrases=fact.phrasings[1:SEEN_PHRASINGS],
                locality=tuple(Neighbour(prompt=o.phrasings[0], target=o.answer, kind=kind) for kind, o in near),
            )
        )
    return edits


def read_prompts(path: Path) -> list[str]:
    """Prompts of a JSONL or JSON file of objects with `prompt` (or `text`): prompts that must not change."""
    prompts = []
    for line, item in read_items(str(path)):
        hint = 'expected lines such as {"prompt": "Who wrote Faust?"}'
        if isinstance(item, Exception):
            raise UsageError(f"{path.name}:{line}: no `prompt` here: {complaint(item)}", hint=hint)
        try:
            prompts.append(clean_text(item["prompt"] if "prompt" in item else item["text"]))  # type: ignore
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UsageError(f"{path.name}:{line}: no `prompt` here", hint=hint) from error
    if not prompts:
        raise UsageError(f"`{path}` holds no prompts")
    return prompts
