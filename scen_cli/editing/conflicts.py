"""Records that contradict an edit or each other: the same question, as far as the base can tell, another target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scen_cli.data.lexical_overlap import content_words
from scen_cli.data.records import EditRecord
from scen_cli.data.words import plain, plain_words, same_text
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.generation import Progress, no_progress
from scen_cli.neurons.guard_split import NEAR
from scen_cli.neurons.index import Index

BLOCK = 1024  # keys that are read together, if a company has no more, and compared with as many others at once


@dataclass(frozen=True, slots=True)
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
    near = _near_rows(model, index, tuple(candidates), keys, list(records.values()), progress)
    for number, (position, record) in enumerate(records.items()):
        rows = same_words.setdefault(plain(record.prompt), [])
        conflicts = [
            Conflict(candidates[row], cosine, cosine is None or not _ask_apart(record, candidates[row]))
            for row, cosine in sorted({**near.get(number, {}), **dict.fromkeys(rows)}.items())
            if candidates[row].prompt != record.prompt and not same_text(candidates[row].target, record.target)
            if cosine is None or index.same_topic(record, candidates[row].prompt, candidates[row].subject)
        ]
        if conflicts:
            found[position] = conflicts
        rows.append(len(candidates))
        candidates.append(ConflictCandidate(record.prompt, record.target, record.subject, position=position))
    progress(len(records), len(records))
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
    model: PatchedModel,
    index: Index,
    edits: Sequence[ConflictCandidate],
    keys: Tensor,
    records: Sequence[EditRecord],
    progress: Progress,
) -> dict[int, dict[int, float | None]]:
    """For each record, by its number, the rows near its own key, with the cosines: rows of the edits' keys, and
    behind these of the earlier records. None are near under a recipe that does not whiten keys.

    Only records that may share their topic are compared, so that a file of n records needs neither n keys in memory
    nor n x n cosines.
    """
    near: dict[int, dict[int, float | None]] = {}
    if model.recipe.index != "closed-form":
        return near
    known = len(edits)
    questions = [(edit.prompt, edit.subject) for edit in edits]
    questions += [(record.prompt, record.subject) for record in records]
    companies = index.calibration_split.topics.companies(questions)
    to_read = sum(row >= known for company in companies for row in company)
    for company in _packed(companies):
        old, new = ([row for row in company if (row >= known) == is_new] for is_new in (False, True))
        if not new:
            continue
        new_keys = _keys_of(model, index, [records[row - known] for row in new])
        for row, other, cosine in _near_pairs(new_keys, torch.cat([keys[old], new_keys]), new, [*old, *new]):
            near.setdefault(row - known, {})[other] = cosine
        to_read -= len(new)
        progress(len(records) - to_read, len(records))
    return near


def _packed(companies: Sequence[list[int]]) -> Iterator[list[int]]:
    """Companies put together, up to `BLOCK` rows: keys are read in large batches."""
    pack: list[int] = []
    for company in companies:
        if pack and len(pack) + len(company) > BLOCK:
            yield pack
            pack = []
        pack = [*pack, *company]
    if pack:
        yield pack


def _near_pairs(
    new_keys: Tensor, all_keys: Tensor, new: Sequence[int], rows: Sequence[int]
) -> Iterator[tuple[int, int, float]]:
    """(row, earlier row, cosine) of each near pair; `new` and `rows` are the rows of the two matrices of keys."""
    for start, part in enumerate(new_keys.split(BLOCK)):
        for first, others in enumerate(all_keys.split(BLOCK)):
            cosines = part @ others.T
            for place, column in (cosines >= NEAR).nonzero().tolist():
                row, other = new[start * BLOCK + place], rows[first * BLOCK + column]
                if other < row:
                    yield row, other, float(cosines[place, column])


def _keys_of(model: PatchedModel, index: Index, records: Sequence[EditRecord]) -> Tensor:
    """Prepared keys (n, h) of the records' prompts."""
    whole = replace(model.routing.key_config, segments=False)
    ids = [model.key_tokens(record.prompt, model.names_of(record)) for record in records]
    return index.prepare_keys(read_segment_keys(model.base, model.edited, ids, whole)[0])
