"""Records that contradict an edit, or each other: the same question, as far as the base can tell, another target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scen_cli.data.lexical_overlap import plain
from scen_cli.data.records import EditRecord
from scen_cli.editing.editor import Editor
from scen_cli.neurons.build_guard import read_segment_keys
from scen_cli.neurons.guard_split import NEAR

POLICIES = ("refuse", "supersede", "keep")


@dataclass(frozen=True)
class ConflictCandidate:
    """What a record may contradict: an `edit` active, or the record at a `place` earlier in the same run."""

    prompt: str
    target: str
    subject: str | None
    edit: int | None = None
    place: int | None = None


@dataclass(frozen=True)
class Conflict:
    """A contradiction, and how near the two keys are (None: the words are the same)."""

    rival: ConflictCandidate
    near: float | None

    def __str__(self) -> str:
        rival = self.rival
        what = f"edit {rival.edit}" if rival.edit else "an earlier record"
        how = "" if self.near is None else f" to this base (nearness {self.near:.2f})"
        return f"{what} ({rival.prompt!r} -> {rival.target!r}) is the same question{how}, with another target"


def find_conflicts(editor: Editor, records: Mapping[int, EditRecord]) -> dict[int, list[Conflict]]:
    """What each record contradicts, by the record's place.

    Two questions are one if their words are or, under a recipe that whitens keys, if their keys are near and they
    may be about the same. An edit of exactly the same prompt is no contradiction: it is superseded.
    """
    rivals, keys = _in_force(editor)
    new = _keys_of(editor, list(records.values()))
    by_words: dict[str, list[int]] = {}
    for row, rival in enumerate(rivals):
        by_words.setdefault(plain(rival.prompt), []).append(row)
    found: dict[int, list[Conflict]] = {}
    for number, (place, record) in enumerate(records.items()):
        near: dict[int, float | None] = {}
        if len(new):
            nearness = torch.cat([keys @ new[number], new[:number] @ new[number]])
            near = {row: float(nearness[row]) for row in (nearness >= NEAR).nonzero().flatten().tolist()}
        words = by_words.setdefault(plain(record.prompt), [])
        conflicts = [
            Conflict(rivals[row], how_near)
            for row, how_near in sorted({**near, **dict.fromkeys(words)}.items())
            if rivals[row].prompt != record.prompt and rivals[row].target != record.target
            if how_near is None or editor.index.same_topic(record, rivals[row].prompt, rivals[row].subject)
        ]
        if conflicts:
            found[place] = conflicts
        words.append(len(rivals))
        rivals.append(ConflictCandidate(record.prompt, record.target, record.subject, place=place))
    return found


def _in_force(editor: Editor) -> tuple[list[ConflictCandidate], Tensor]:
    """The active edits, and their prepared keys (n, h), one each."""
    index = editor.index
    index.load()
    of_expert: dict[int, list[ConflictCandidate]] = {}
    for edit in editor.project.ledger.edits("active"):
        rival = ConflictCandidate(edit.prompt, edit.target, edit.subject, edit=edit.id)
        of_expert.setdefault(edit.expert or edit.id, []).append(rival)
    rivals = [of_expert[expert].pop(0) for expert in index.key_of]
    return rivals, index.keys.all()


def _keys_of(editor: Editor, records: list[EditRecord]) -> Tensor:
    """Prepared keys (n, h) of the records' prompts; none under a recipe whose keys tell nothing of nearness."""
    if editor.recipe.index != "closed-form" or not records:
        return torch.empty(0, editor.edited.ffn_width)
    whole = replace(editor.routing.key_config, segments=False)
    ids = [editor.template.prompt_ids(record.prompt) for record in records]
    return editor.index.prepare(read_segment_keys(editor.base, editor.edited, ids, whole)[0])
