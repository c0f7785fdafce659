"""What a data file holds: forms, counts, repeats, contradictions, and edits that meet their own locality prompts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

from scen_cli.data.entries import Entry, repeats
from scen_cli.data.records import EditRecord

NEAR = 0.8  # share of words two prompts have in common, of all the words they have, to count as near


@dataclass(frozen=True)
class Inspection:
    """Counts of a file. `problems`, `repeats` and `conflicts` name places in it; a conflict is a second
    target for one prompt. `phrasings` counts facts (subject and target; without a subject, prompts) by how
    many phrasings they have; `portability` and `locality` count prompts by kind; `locality_edited` are
    locality prompts that are a phrasing of an edit, word for word. `near` holds (phrasing of an edit, locality
    prompt, share of common words): a locality prompt that an edit may well claim."""

    forms: dict[str, int]
    records: int
    distinct_prompts: int
    problems: list[str]
    repeats: list[str]
    conflicts: list[str]
    phrasings: dict[int, int]
    with_subject: int
    with_truth: int
    portability: dict[str, int]
    locality: dict[str, int]
    locality_edited: int
    near: list[tuple[str, str, float]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(entries: Sequence[Entry], locality: Sequence[str] = ()) -> Inspection:
    """Look through the entries of a file; `locality` are further prompts that must not change."""
    records = [entry.record for entry in entries if entry.record is not None]
    found: dict[bool, list[str]] = {True: [], False: []}  # by whether the target is the same too
    for place, earlier, same in repeats(entries):
        prompt = earlier.record.prompt if earlier.record else ""
        found[same].append(f"{entries[place].where} and {earlier.where.line}: {prompt}")
    neighbours = [neighbour for record in records for neighbour in record.locality]
    locality_prompts = [*(neighbour.prompt for neighbour in neighbours), *locality]
    edited = dict.fromkeys(text for record in records for text in (record.prompt, *record.rephrases))
    return Inspection(
        forms=dict(Counter(entry.form for entry in entries if entry.form)),
        records=len(records),
        distinct_prompts=len({record.prompt for record in records}),
        problems=[f"{entry.where}: {entry.problem}" for entry in entries if entry.record is None],
        repeats=found[True],
        conflicts=found[False],
        phrasings=dict(sorted(Counter(_phrasings_of_facts(records)).items())),
        with_subject=sum(record.subject is not None for record in records),
        with_truth=sum(bool(record.truth) for record in records),
        portability=_kinds([question.kind for record in records for question in record.portability]),
        locality=_kinds([neighbour.kind for neighbour in neighbours]),
        locality_edited=sum(prompt in edited for prompt in locality_prompts),
        near=near_duplicates(list(edited), locality_prompts),
    )


def near_duplicates(edits: Sequence[str], others: Sequence[str]) -> list[tuple[str, str, float]]:
    """Pairs (edit, other, share) whose words are the same but for a few: Jaccard at least `NEAR`.

    Exact, without comparing all pairs: two sets that near to each other must share a word among
    the rarest few of each (prefix filtering).
    """
    words = {text: frozenset(re.findall(r"\w+", text.casefold())) for text in {*edits, *others}}
    frequency = Counter(word for found in words.values() for word in found)

    def rarest(text: str) -> list[str]:
        known = sorted(words[text], key=lambda word: (frequency[word], word))
        return known[: len(known) - ceil(NEAR * len(known)) + 1]

    edits_with: dict[str, list[str]] = defaultdict(list)
    for edit in dict.fromkeys(edits):
        for word in rarest(edit):
            edits_with[word].append(edit)
    pairs = []
    for other in dict.fromkeys(others):
        for edit in dict.fromkeys(edit for word in rarest(other) for edit in edits_with[word]):
            share = len(words[edit] & words[other]) / len(words[edit] | words[other])
            if share >= NEAR:
                pairs.append((edit, other, round(share, 3)))
    return sorted(pairs, key=lambda pair: -pair[2])


def _kinds(kinds: Sequence[str | None]) -> dict[str, int]:
    return dict(Counter(kind or "unnamed" for kind in kinds))


def _phrasings_of_facts(records: Sequence[EditRecord]) -> list[int]:
    """How many different phrasings each fact has, over all records of the same subject and target."""
    facts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        facts[record.subject or record.prompt, record.target] |= {record.prompt, *record.rephrases}
    return [len(phrasings) for phrasings in facts.values()]
