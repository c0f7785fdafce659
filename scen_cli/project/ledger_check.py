"""Checks the ledger against itself: SQLite's own check, the tables' columns, the event log, and rows against events."""

from __future__ import annotations

import json
from typing import Any

from scen_cli.project.event_log import chain_problems, contradictions, digest_of_guard, replay_events
from scen_cli.project.ledger import Ledger
from scen_cli.project.schema import schema_problems


def integrity_problems(ledger: Ledger) -> list[str]:
    """What is wrong with a ledger; empty if nothing is."""
    results = [row[0] for row in ledger.db.execute("pragma integrity_check").fetchall()]
    problems = [f"scen.db: {result}" for result in results if result != "ok"]
    problems += schema_problems(ledger.db)
    return problems or log_problems(ledger)  # the log says nothing about other tables


def log_problems(ledger: Ledger) -> list[str]:
    """Where the event log's chain is broken, and where the tables contradict the events."""
    try:
        events, edits, thresholds, evaluations, guard = (
            list(ledger.db[table].rows_where(order_by="id"))
            for table in ("events", "edits", "thresholds", "evaluations", "guard")
        )
        settings, problems = _settings(ledger)
        expected = replay_events(events)
        prompts = [(row["prompt"], row["split"], row["source"]) for row in guard]
        digest = digest_of_guard(prompts) if guard or expected.guard is not None else None
        problems += contradictions(expected, edits, thresholds, settings, evaluations, digest)
        return chain_problems(events) + problems
    except (LookupError, TypeError, ValueError) as error:  # a column holds a type that scen does not write
        return [f"the log or a row cannot be read: {error}"]


def _settings(ledger: Ledger) -> tuple[dict[str, Any], list[str]]:
    """The settings that can be read, and what is wrong with the others."""
    settings: dict[str, Any] = {}
    problems = []
    for row in ledger.db["settings"].rows:
        try:
            settings[row["name"]] = json.loads(row["value"])
        except (TypeError, ValueError):
            problems.append(f"setting `{row['name']}` cannot be read")
    return settings, problems
