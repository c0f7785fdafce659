"""Suites: which facts to edit, and which prompts must not change.

`demo` is embedded. `zsre` reads the dataset's published forms from a file. Any other name is a
file of edit records.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scen_cli.data.records import EditRecord, check_record, read_entries
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
    """Prompts of a JSONL file, one object with `prompt` per line: locality prompts of the user's own."""
    prompts = []
    for line, raw in enumerate(_read_text(path).splitlines(), start=1):
        try:
            prompts.append(str(json.loads(raw)["prompt"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            hint = 'expected lines such as {"prompt": "Who wrote Faust?"}'
            raise UsageError(f"{path.name}:{line}: no `prompt` here", hint=hint) from error
    return prompts


def _zsre(path: Path) -> Suite:
    text = _read_text(path)
    try:
        items = json.loads(text) if text.lstrip().startswith("[") else [json.loads(row) for row in text.splitlines()]
    except json.JSONDecodeError as error:
        raise UsageError(f"{path.name}:{error.lineno}: not valid JSON: {error.msg}") from error
    records: dict[str, EditRecord] = {}
    for number, item in enumerate(items, start=1):
        try:
            record = _zsre_record(item)
        except ValueError as error:
            raise UsageError(f"{path.name}: record {number}: {error}") from error
        records.setdefault(record.prompt, record)  # the published files repeat some prompts
    return Suite("zsre", list(records.values()), [])


def _zsre_record(item: dict[str, Any]) -> EditRecord:
    """One record of any published form: KnowEdit/EasyEdit, MEND, or SCEN's own, told by its fields."""
    if "target_new" in item:
        target, rephrases = item["target_new"], item.get("rephrase_prompt", [])
        fields = {"prompt": item["prompt"], "subject": item.get("subject")}
    elif "alt" in item:
        target, rephrases, fields = item["alt"], item.get("rephrase", []), {"prompt": item["src"]}
    elif "Q" in item:
        target, rephrases, fields = item["A"], item.get("rephrases", []), {"prompt": item["Q"]}
    else:
        raise ValueError("none of the known forms (`target_new`, `alt` or `Q` names its form)")
    rephrases = [rephrases] if isinstance(rephrases, str) else rephrases
    target = target[0] if isinstance(target, list) else target
    return check_record({**fields, "target": target, "rephrases": rephrases})


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read `{path}`: {error}") from error
