"""The files of the Hallucination suite: passages with their true next sentences, and plain texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scen_cli.data.entries import bad_lines, parse_file
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite, load_suite, read_prompts
from scen_cli.errors import UsageError


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
