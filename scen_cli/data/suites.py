"""Suites: which facts to edit, and which prompts must not change.

`demo` is embedded. `zsre` reads the dataset's published forms from a file. Any other name is a
file of edit records.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scen_cli.data.records import EditRecord, check_record, clean_text, read_entries, read_items
from scen_cli.demo.facts import editable_facts, right_facts
from scen_cli.demo.world import SEEN_PHRASINGS
from scen_cli.errors import UsageError


@dataclass(frozen=True)
class Suite:
    """Edits in order, and locality prompts: questions whose answers must stay as they are.

    A suite without locality prompts of its own is scored on those of its records that were never
    edited: the same kind of question, which is the hardest sort.
    """

    name: str
    edits: list[EditRecord]
    locality: list[str]


def load_suite(name: str, data: Path | None = None) -> Suite:
    """Load a suite. Raises `UsageError` for a missing or unreadable file."""
    if name == "demo":
        return Suite(name, demo_edits(), [fact.phrasings[0] for fact in right_facts()])
    if name == "zsre":
        if data is None:
            raise UsageError("the zsre suite needs its data: `--data FILE`")
        return _zsre(data)
    entries = read_entries(name)
    bad = [entry for entry in entries if entry.record is None]
    if bad:
        raise UsageError(f"{bad[0].where}: {bad[0].problem}")
    records = [entry.record for entry in entries if entry.record is not None]
    return Suite(Path(name).name, records, read_prompts(data) if data else [])


def demo_edits() -> list[EditRecord]:
    """One edit per fact the demo base has wrong: its first phrasing, with the others that occur in
    the base's training as rephrases."""
    return [
        EditRecord(
            prompt=fact.phrasings[0],
            target=fact.answer,
            subject=fact.subject,
            rephrases=fact.phrasings[1:SEEN_PHRASINGS],
        )
        for fact in editable_facts()
    ]


def read_prompts(path: Path) -> list[str]:
    """Prompts of a JSONL or JSON file of objects with `prompt`: locality prompts of the user's own."""
    prompts = []
    for line, item in read_items(str(path)):
        try:
            prompts.append(clean_text(item["prompt"]))  # type: ignore[index]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            hint = 'expected lines such as {"prompt": "Who wrote Faust?"}'
            raise UsageError(f"{path.name}:{line}: no `prompt` here", hint=hint) from error
    if not prompts:
        raise UsageError(f"`{path}` holds no prompts")
    return prompts


def _zsre(path: Path) -> Suite:
    records: dict[str, EditRecord] = {}
    for line, item in read_items(str(path)):
        try:
            record = _zsre_record(item)
        except ValueError as error:
            raise UsageError(f"{path.name}: record {line}: {error}") from error
        records.setdefault(record.prompt, record)  # the published files repeat some prompts
    return Suite("zsre", list(records.values()), [])


# Fields of the published forms: prompt, target, rephrases. KnowEdit/EasyEdit, MEND, SCEN's own.
_FORMS = [("prompt", "target_new", "rephrase_prompt"), ("src", "alt", "rephrase"), ("Q", "A", "rephrases")]


def _zsre_record(item: object) -> EditRecord:
    """One record of any published form, told by its fields; `ValueError` says what is wrong with it."""
    if not isinstance(item, dict):
        raise ValueError("is not a JSON object")
    for prompt, target, rephrases in _FORMS:
        if prompt in item and target in item:
            answer, others = item[target], item.get(rephrases, [])
            fields = {
                "prompt": item[prompt],
                "target": answer[0] if isinstance(answer, list) and answer else answer,
                "rephrases": [others] if isinstance(others, str) else others,
            }
            return check_record({**fields, **({"subject": item["subject"]} if "subject" in item else {})})
    forms = ", ".join(f"`{prompt}` and `{target}`" for prompt, target, _rephrases in _FORMS)
    raise ValueError(f"is of none of the known forms, which have {forms}")
