"""The Hallucination suite: perplexities of sentences that were edited in, of accurate sentences, and of plain text.

The prompt of an edit is a passage so far, its target the true next sentence. The route is decided once, at the last
token of the passage, and holds for the whole pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Passages
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.evaluation.evaluation import Evaluation
from scen_cli.evaluation.metrics import Figure, Mean, Share
from scen_cli.evaluation.samples import left_out, not_learned, scored_edits
from scen_cli.evaluation.teacher_forced import Text, score
from scen_cli.model.template import Template

ROUTE_BATCH = 8  # passages are long


@dataclass(frozen=True)
class Passage:
    """A text to score, and the tokens at whose end it is routed."""

    text: Text
    routed_by: list[int]


def evaluate_perplexity(patched: PatchedModel, passages: Passages) -> Evaluation:
    """Perplexities: exp of the mean loss of each sample in nats, then the mean over samples (the paper's metric).

    `wikibio-e` and `wikibio-a` are scored over the target without an end token, `openwebtext` over the text without
    its first token. `wikibio-e-given-expert` gives each passage its own edit's expert. A text that is longer than the
    base's context is cut at its end; a passage that leaves no room for its sentence is cut at its beginning. The curve
    `cut` counts both. `too_long` counts samples that cannot be scored at all.
    """
    last_change = patched.project.ledger.last_change()
    with patched.snapshot() as patch:
        edits = patched.project.ledger.edits()
        scored = scored_edits(edits, set(patch.expert_of), passages.edits)
        groups = {
            "wikibio-e": [with_continuation(patched.template, patched.context, item.record) for item in scored],
            "wikibio-a": [with_continuation(patched.template, patched.context, item) for item in passages.accurate],
            "openwebtext": [whole_text(patched.template, patched.context, text) for text in passages.openwebtext],
        }
        usable = {name: [passage for passage in group if passage] for name, group in groups.items()}
        figures = {name: _perplexity(patched, group) for name, group in usable.items() if group}
        own_expert = [
            (passage.text, item.edit.expert)
            for passage, item in zip(groups["wikibio-e"], scored, strict=True)
            if passage
        ]
        values = perplexities(patched, [text for text, _ in own_expert], [expert for _, expert in own_expert])
        figures["wikibio-e-given-expert"] = Figure(Mean.of(values))
        return Evaluation(
            suite="hallucination",
            decoding="teacher-forced",
            theta=patch.theta,
            last_change=last_change,
            records=len(passages.edits.edits),
            edits=len(scored),
            not_learned=not_learned(scored),
            left_out=left_out(edits, scored, passages.edits),
            too_long=sum(passage is None for group in groups.values() for passage in group),
            figures=figures,
            curves={"cut": {name: _count_cut(patched, group) for name, group in usable.items()}},
        )


def perplexities(patched: PatchedModel, texts: Sequence[Text], edits: Sequence[int | None]) -> list[float]:
    """exp of each text's mean loss per scored token, under its edit's expert (None: the base)."""
    return [exp(sum(scores.losses) / len(scores.losses)) for scores in score(patched, texts, edits)]


def _perplexity(patched: PatchedModel, passages: list[Passage]) -> Figure:
    texts = [passage.text for passage in passages]
    rows = [passage.routed_by for passage in passages]
    batches = [rows[start : start + ROUTE_BATCH] for start in range(0, len(rows), ROUTE_BATCH)]
    routed = [edit for batch in batches for edit in patched.route_ids(batch).edits]
    return Figure(
        patched=Mean.of(perplexities(patched, texts, routed)),
        base=Mean.of(perplexities(patched, texts, [None] * len(texts))),
        fired=Share.of([edit is not None for edit in routed]),
    )


def with_continuation(template: Template, context: int | None, record: EditRecord) -> Passage | None:
    """A passage and its next sentence; None if the sentence alone fills the base's context."""
    prompt = template.prompt_ids(record.prompt)
    target = template.target_ids(record.prompt, record.target)[:-1]
    if not target or not prompt:
        return None
    if context is not None:
        room = context - len(target)
        if room < 1:
            return None
        prompt = prompt[-room:]
    return Passage(Text(prompt + target, len(target)), prompt)


def whole_text(template: Template, context: int | None, text: str) -> Passage | None:
    """A text, scored from its second token on; None if it has only one."""
    ids = template.prompt_ids(text)[:context]
    return Passage(Text(ids, len(ids) - 1), ids) if len(ids) > 1 else None


def _count_cut(patched: PatchedModel, passages: list[Passage]) -> int:
    """How many passages were cut: those that fill the base's context to the last token."""
    return sum(len(passage.text.ids) == patched.context for passage in passages)
