"""Records in the form that commands read."""

from __future__ import annotations

import json

from scen_cli.data.suites import demo_edits

RECORDS = demo_edits()[:4]


def lines(*records, **extra) -> str:
    """Prompts and targets as JSONL; `extra` fields are added to each record."""
    return "".join(json.dumps({"prompt": r.prompt, "target": r.target, **extra}) + "\n" for r in records)
