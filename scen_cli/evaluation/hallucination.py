"""The Hallucination suite: perplexities of sentences that were edited in, of accurate ones, and of plain text.

An edit is a passage so far (its prompt) and the true next sentence (its target). The route is decided
once, at the last token of the passage, and holds for the whole pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from scen_cli.data.passages import Passages
from scen_cli.data.records import EditRecord
from scen_cli.editing.editor import Editor
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.evaluation.evaluate_project import Evaluation
from scen_cli.evaluation.metrics import Figure, Mean, Share
from scen_cli.evaluation.samples import left_out, not_learned, scored_edits
from scen_cli.evaluation.teacher_forced import Text, score
from scen_cli.model.template import Template

ROUTED_AT_ONCE = 8  # passages are long


@dataclass(frozen=True)
class Passage:
    """A text to score, and the tokens at whose end it is routed."""

    text: Text
    routed_by: list[int]


def evaluate_perplexity(editor: Editor, passages: Passages) -> Evaluation:
    """Perplexities: exp of the mean loss of each sample, then the mean over samples (the paper's).

    `wikibio-e` and `wikibio-a` over the target's tokens, without an end token; `openwebtext` over the
    whole text but its first token. `wikibio-e-given-expert` hands each passage its own edit's expert.
    A text longer than the base's context is cut at its end, a passage that leaves no room for its
    sentence at its beginning; `cut` says how many were. `too_long` counts what cannot be scored at all.
    """
    last_change = editor.project.ledger.last_change()
    with editor.snapshot() as patch:
        everything = editor.project.ledger.edits()
        scored = scored_edits(everything, set(patch.expert_of), passages.edits)
        groups = {
            "wikibio-e": [continued(editor.template, editor.context, one.record) for one in scored],
            "wikibio-a": [continued(editor.template, editor.context, record) for record in passages.accurate],
            "openwebtext": [whole(editor.template, editor.context, text) for text in passages.openwebtext],
        }
        known = {name: [passage for passage in group if passage] for name, group in groups.items()}
        figures = {name: _perplexity(editor, group) for name, group in known.items() if group}
        given = [
            (passage.text, one.edit.expert) for passage, one in zip(groups["wikibio-e"], scored, strict=True) if passage
        ]
        values = perplexities(editor, [text for text, _ in given], [expert for _, expert in given])
        figures["wikibio-e-given-expert"] = Figure(Mean.of(values))
        return Evaluation(
            suite="hallucination",
            decoding="teacher-forced",
            theta=patch.theta,
            last_change=last_change,
            records=len(passages.edits.edits),
            edits=len(scored),
            not_learned=not_learned(scored),
            left_out=left_out(everything, scored, passages.edits),
            too_long=sum(passage is None for group in groups.values() for passage in group),
            figures=figures,
            curves={"cut": {name: _cut(editor, group) for name, group in known.items()}},
        )


def perplexities(patched: PatchedModel, texts: Sequence[Text], edits: Sequence[int | None]) -> list[float]:
    """exp of each text's mean loss per scored token, under its edit's expert (None: the base)."""
    return [exp(sum(found.losses) / len(found.losses)) for found in score(patched, texts, edits)]


def _perplexity(editor: Editor, passages: list[Passage]) -> Figure:
    texts = [passage.text for passage in passages]
    fired = [
        edit
        for start in range(0, len(passages), ROUTED_AT_ONCE)
        for edit in editor.route_ids([passage.routed_by for passage in passages[start : start + ROUTED_AT_ONCE]]).edits
    ]
    return Figure(
        patched=Mean.of(perplexities(editor, texts, fired)),
        base=Mean.of(perplexities(editor, texts, [None] * len(texts))),
        fired=Share.of([edit is not None for edit in fired]),
    )


def continued(template: Template, context: int | None, record: EditRecord) -> Passage | None:
    """A passage and its sentence; None if the sentence alone fills the base's context."""
    prompt = template.prompt_ids(record.prompt)
    target = template.target_ids(record.prompt, record.target)[:-1]
    room = (context or 10**9) - len(target)
    if not target or not prompt or room < 1:
        return None
    prompt = prompt if len(prompt) <= room else prompt[-room:]
    return Passage(Text(prompt + target, len(target)), prompt)


def whole(template: Template, context: int | None, text: str) -> Passage | None:
    """A whole text; None if it is one token, of which nothing can be foretold."""
    ids = template.prompt_ids(text)[:context]
    return Passage(Text(ids, len(ids) - 1), ids) if len(ids) > 1 else None


def _cut(editor: Editor, passages: list[Passage]) -> int:
    """How many of these fill the base's context to the last token: those that had to be cut."""
    return sum(len(passage.text.ids) == editor.context for passage in passages)
