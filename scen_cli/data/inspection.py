"""What a data file holds: forms, counts, repeats, contradictions, and locality prompts that are similar to an edit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from scen_cli.data.entries import Entry, empty_fields, repeats
from scen_cli.data.lexical_overlap import near_duplicates
from scen_cli.data.records import EditRecord


@dataclass(frozen=True)
class Inspection:
    """Counts of a file.

    Attributes:
        forms: Records by form.
        records: How many records can be used.
        distinct_prompts: How many different prompts they have.
        problems: Records that cannot be used, with their lines.
        repeats: Records that repeat an earlier one.
        conflicts: Records that give another target for the same prompt.
        phrasings: Facts by their number of phrasings. A fact is a subject (without one, a prompt) and a target.
        with_subject: Records with a subject.
        with_truth: Records with a true answer.
        portability: Portability questions by kind.
        locality: Locality prompts by kind.
        locality_edited: Locality prompts that are also the phrasing of an edit.
        empty: Records with empty optional fields.
        near: (phrasing of an edit, locality prompt, similarity) of pairs that an edit may claim by mistake.
    """

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
    empty: list[str]
    near: list[tuple[str, str, float]] = field(default_factory=list)


def inspect(entries: Sequence[Entry], locality: Sequence[str] = ()) -> Inspection:
    """Count the entries of a file; `locality` are further prompts that must not change."""
    records = [entry.record for entry in entries if entry.record is not None]
    repeated: dict[bool, list[str]] = {True: [], False: []}  # by whether the target is the same
    for position, earlier, same_target in repeats(entries):
        prompt = earlier.record.prompt if earlier.record else ""
        repeated[same_target].append(f"{entries[position].where} and {earlier.where.line}: {prompt}")
    neighbours = [neighbour for record in records for neighbour in record.locality]
    locality_prompts = [*(neighbour.prompt for neighbour in neighbours), *locality]
    edited = dict.fromkeys(text for record in records for text in (record.prompt, *record.rephrases))
    return Inspection(
        forms=dict(Counter(entry.form for entry in entries if entry.form)),
        records=len(records),
        distinct_prompts=len({record.prompt for record in records}),
        problems=[f"{entry.where}: {entry.problem}" for entry in entries if entry.record is None],
        repeats=repeated[True],
        conflicts=repeated[False],
        phrasings=dict(sorted(Counter(_phrasings_of_facts(records)).items())),
        with_subject=sum(record.subject is not None for record in records),
        with_truth=sum(bool(record.truth) for record in records),
        portability=dict(Counter(question.kind or "unnamed" for record in records for question in record.portability)),
        locality=dict(Counter(neighbour.kind or "unnamed" for neighbour in neighbours)),
        locality_edited=sum(prompt in edited for prompt in locality_prompts),
        empty=empty_fields(entries, len(entries)),
        near=near_duplicates(list(edited), locality_prompts),
    )


def _phrasings_of_facts(records: Sequence[EditRecord]) -> list[int]:
    """How many different phrasings each fact has, in all records of the same subject and target."""
    facts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        facts[record.subject or record.prompt, record.target] |= {record.prompt, *record.rephrases}
    return [len(phrasings) for phrasings in facts.values()]
