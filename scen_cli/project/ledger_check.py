"""The ledger against itself: SQLite's own check, the tables' columns, the log, and every row against the log."""

from __future__ import annotations

import json
from typing import Any

from scen_cli.project.event_log import chain_problems, contradictions, digest_of_guard, replay_events
from scen_cli.project.ledger import Ledger
from scen_cli.project.schema import schema_problems

TABLES = ("edits", "thresholds", "evaluations")


def integrity_problems(ledger: Ledger) -> list[str]:
    """What is wrong with a ledger; empty when all is well."""
    answers = [row[0] for row in ledger.db.execute("pragma integrity_check").fetchall()]
    problems = [f"scen.db: {answer}" for answer in answers if answer != "ok"]
    problems += schema_problems(ledger.db)
    return problems or log_problems(ledger)  # of other tables the log could say nothing


def log_problems(ledger: Ledger) -> list[str]:
    """Where the event log is not the chain that it was, and where the tables say other than it tells."""
    try:
        return _log_problems(ledger)
    except (LookupError, TypeError, ValueError) as error:  # columns of another type than any that scen writes
        return [f"the log or a row cannot be read: {error}"]


def _log_problems(ledger: Ledger) -> list[str]:
    events = list(ledger.db["events"].rows_where(order_by="id"))
    settings, problems = _settings(ledger)
    edits, thresholds, evaluations = (list(ledger.db[name].rows_where(order_by="id")) for name in TABLES)
    guard = [(row["prompt"], row["split"], row["source"]) for row in ledger.db["guard"].rows_where(order_by="id")]
    told = replay_events(events)
    digest = digest_of_guard(guard) if guard or told.guard is not None else None
    problems += contradictions(told, edits, thresholds, settings, evaluations, digest)
    return chain_problems(events) + problems


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
