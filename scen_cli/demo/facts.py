"""Facts that the demo base answers wrongly (edits of the demo suite) and rightly (locality prompts)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jsonlines

from scen_cli.demo.world import Fact, build_world, further_facts

FACTS = Path(__file__).parent / "base" / "facts.jsonl"
FURTHER = 700  # further facts that the suite edits


def all_facts() -> list[Fact]:
    """The world's facts, then the further facts."""
    return build_world() + further_facts(FURTHER)


@cache
def _facts_and_answers() -> list[tuple[Fact, list[str]]]:
    """Every fact with the base's answers to its phrasings, as the training script recorded them."""
    with jsonlines.open(FACTS) as rows:
        return [(fact, row["base_answers"]) for fact, row in zip(all_facts(), rows, strict=True)]


def editable_facts() -> list[Fact]:
    """Unknown facts that the base answers wrongly in every phrasing, in a fixed order (D_edit)."""
    return [fact for fact, answers in _facts_and_answers() if not fact.known and fact.answer not in answers]


def right_facts() -> list[Fact]:
    """Known facts that the base answers rightly in their first phrasing (D_loc)."""
    return [fact for fact, answers in _facts_and_answers() if fact.known and answers[0] == fact.answer]
