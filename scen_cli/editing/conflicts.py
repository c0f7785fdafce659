"""Records that contradict an edit or each other: the same question, as far as the base can tell, another target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from scen_cli.data.lexical_overlap import content_words
from scen_cli.data.records import EditRecord
from scen_cli.data.words import plain, plain_words
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.generation import Progress, no_progress
from scen_cli.neurons.guard_split import NEAR
from scen_cli.neurons.index import Index

BLOCK = 1024  # keys that are read, and compared with as many others, at once


@dataclass(frozen=True)
class ConflictCandidate:
    """What a record may contradict: an active `edit`, or the record at an earlier `position` of the same run."""

    prompt: str
    target: str
    subject: str | None
    edit: int | None = None
    position: int | None = None


@dataclass(frozen=True)
class Conflict:
    """A contradiction; the cosine of the two whitened keys (None: the words are the same); whether it is certain."""

    candidate: ConflictCandidate
    cosine: float | None
    certain: bool = True

    def __str__(self) -> str:
        other = self.candidate
        what = f"edit {other.edit}" if other.edit else "an earlier record"
        how = "" if self.cosine is None else f" to this base (cosine of the keys {self.cosine:.2f})"
        verb = "is" if self.certain else "may be"
        return f"{what} ({other.prompt!r} -> {other.target!r}) {verb} the same question{how}, with another target"


def find_conflicts(
    model: PatchedModel, index: Index, records: Mapping[int, EditRecord], progress: Progress = no_progress
) -> dict[int, list[Conflict]]:
    """What each record contradicts, by its position in the run.

    Two questions are the same if their words are. Under a recipe that whitens keys they are also the same if the
    cosine of their keys is at least `NEAR`, their subjects do not differ, and one of them asks with no word that the
    other lacks. If each has such a word (father and mother, C and C++), the keys alone do not tell: such a conflict is
    not `certain`. An edit of exactly the same prompt is no contradiction: the record supersedes it.
    """
    candidates, keys = _active_edits(model, index)
    same_words: dict[str, list[int]] = {}
    for row, candidate in enumerate(candidates):
        same_words.setdefault(plain(candidate.prompt), []).append(row)
    found: dict[int, list[Conflict]] = {}
    near_rows = _near_rows(model, index, tuple(candidates), keys, list(records.values()))
    for number, ((position, record), near) in enumerate(zip(records.items(), near_rows, strict=True), 1):
        progress(number, len(records))
        rows = same_words.setdefault(plain(record.prompt), [])
        conflicts = [
            Conflict(candidates[row], cosine, cosine is None or not _ask_apart(record, candidates[row]))
            for row, cosine in sorted({**near, **dict.fromkeys(rows)}.items())
            if candidates[row].prompt != record.prompt and candidates[row].target != record.target
            if cosine is None or index.same_topic(record, candidates[row].prompt, candidates[row].subject)
        ]
        if conflicts:
            found[position] = conflicts
        rows.append(len(candidates))
        candidates.append(ConflictCandidate(record.prompt, record.target, record.subject, position=position))
    return found


def _ask_apart(record: EditRecord, candidate: ConflictCandidate) -> bool:
    """Whether each of two questions has a word of its own, beside the subject and words such as `which`."""
    first, second = (
        content_words(question.prompt) - set(plain_words(question.subject or "")) for question in (record, candidate)
    )
    return bool(first - second) and bool(second - first)


def _active_edits(model: PatchedModel, index: Index) -> tuple[list[ConflictCandidate], Tensor]:
    """The active edits and their prepared keys (n, h), one each."""
    index.load()
    of_expert: dict[int, list[ConflictCandidate]] = {}
    for edit in model.project.ledger.edits("active"):
        candidate = ConflictCandidate(edit.prompt, edit.target, edit.subject, edit=edit.id)
        of_expert.setdefault(edit.expert or edit.id, []).append(candidate)
    candidates = [of_expert[expert].pop(0) for expert in index.expert_of_key]
    return candidates, index.keys.all()


def _near_rows(
    model: PatchedModel, index: Index, edits: Sequence[ConflictCandidate], keys: Tensor, records: Sequence[EditRecord]
) -> Iterator[dict[int, float | None]]:
    """For each record the rows of the edits' keys, and behind these of the earlier records, that are near its own key,
    with the cosines. None are near under a recipe that does not whiten keys.

    Only the keys of records that may share their topic are read, and they are compared in blocks: a file of n records
    needs no n x n cosines.
    """
    if model.recipe.index != "closed-form":
        yield from ({} for _record in records)
        return
    known = len(edits)
    questions = [(edit.prompt, edit.subject) for edit in edits]
    questions += [(record.prompt, record.subject) for record in records]
    in_company = index.calibration_split.topics.with_company(questions)[known:]
    rows = list(range(known))  # of the keys read so far
    read = list(keys.split(BLOCK))
    for start in range(0, len(records), BLOCK):
        block = range(start, min(start + BLOCK, len(records)))
        numbers = [number for number in block if in_company[number]]
        near: dict[int, dict[int, float | None]] = {number: {} for number in numbers}
        if numbers:
            new = _keys_of(model, index, [records[number] for number in numbers])
            read.append(new)
            rows += [known + number for number in numbers]
            first = 0
            for matrix in read:
                cosines = new @ matrix.T
                for place, column in (cosines >= NEAR).nonzero().tolist():
                    number, row = numbers[place], rows[first + column]
                    if row < known + number:
                        near[number][row] = float(cosines[place, column])
                first += len(matrix)
        yield from (near.get(number, {}) for number in block)


def _keys_of(model: PatchedModel, index: Index, records: Sequence[EditRecord]) -> Tensor:
    """Prepared keys (n, h) of the records' prompts."""
    whole = replace(model.routing.key_config, segments=False)
    ids = [model.key_tokens(record.prompt, model.names_of(record)) for record in records]
    return index.prepare_keys(read_segment_keys(model.base, model.edited, ids, whole)[0])
