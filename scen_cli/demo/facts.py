"""What the demo base knows and what it gets wrong: what its suite edits and what must stay."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jsonlines

from scen_cli.demo.world import Fact, build_world, further_facts

FACTS = Path(__file__).parent / "base" / "facts.jsonl"
FURTHER = 700  # facts beyond the world that the suite edits


def all_facts() -> list[Fact]:
    """The world's facts and, after them, those of further subjects."""
    return build_world() + further_facts(FURTHER)


@cache
def _facts_and_answers() -> list[tuple[Fact, list[str]]]:
    """Every fact with the base's answer to each of its phrasings, as the training script recorded them."""
    with jsonlines.open(FACTS) as rows:
        return [(fact, row["base_answers"]) for fact, row in zip(all_facts(), rows, strict=True)]


def editable_facts() -> list[Fact]:
    """Unknown facts the base answers wrongly in every phrasing, in a fixed order (D_edit)."""
    return [fact for fact, answers in _facts_and_answers() if not fact.known and fact.answer not in answers]


def right_facts() -> list[Fact]:
    """Known facts the base answers rightly in their first phrasing (D_loc)."""
    return [fact for fact, answers in _facts_and_answers() if fact.known and answers[0] == fact.answer]
