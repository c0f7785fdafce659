"""Score a project on a suite, after its last edit, by generation and exact match (spec: equations 1 to 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.metrics import Share

REPHRASES = 3  # Generality is scored on the first three rephrases of each edit
LOCALITY_PROMPTS = 1000  # Locality on the first 1,000 unedited questions
DECODING: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "paper": {"do_sample": False, "max_new_tokens": 50, "num_beams": 4, "repetition_penalty": 1.1},
}


@dataclass(frozen=True)
class Figures:
    """One column of the table: the patched model's figures, or the base's own."""

    reliability: Share
    generality: Share
    locality: Share
    token_accuracy: Share


@dataclass(frozen=True)
class Evaluation:
    """Both columns, and what routing did.

    `generality_given_expert` hands each rephrase its own edit's expert: the most that routing
    could reach. `edits` of the suite's `records` were tried and are scored; `left_out`: records
    whose edits were superseded or reverted since, which are not. `last_change`: the ledger's newest
    change when scoring began. `rephrases_routed`: to their own edit. `locality_fired`: locality
    prompts on which any edit fired, rightly answered or not.
    """

    suite: str
    decoding: str
    last_change: int
    records: int
    edits: int
    not_learned: int
    left_out: int
    patched: Figures
    base: Figures
    generality_given_expert: Share
    rephrases_routed: Share
    locality_fired: Share

    def as_dict(self) -> dict[str, Any]:
        def plain(value: Any) -> Any:
            if isinstance(value, Share):
                return value.as_dict()
            if isinstance(value, Figures):
                return {name: plain(share) for name, share in vars(value).items()}
            return value

        return {name: plain(value) for name, value in vars(self).items()}


def evaluate(editor: Editor, suite: Suite, decoding: str = "greedy") -> Evaluation:
    """Score a suite on the edits in force now: see `_evaluate`. Others may commit meanwhile."""
    last_change = editor.project.ledger.last_change()  # read first: a change from here on makes figures old
    with editor.steady() as patch:
        return _evaluate(editor, set(patch.edits), suite, decoding, last_change)


def _evaluate(editor: Editor, in_force: set[int], suite: Suite, decoding: str, last_change: int) -> Evaluation:
    """Score the suite's edits that this project has made, or tried and failed to make.

    Reliability: the edit's prompt gives exactly its target. Generality: so do its first three
    rephrases. Locality (equation 2): a locality prompt gives exactly what the base gives. An edit
    that could not be learned counts as wrong in both of the first two.

    Raises `UsageError` if none of the suite's edits is in the project.
    """
    options = DECODING[decoding]
    everything = editor.project.ledger.edits()
    tried = {(e.prompt, e.target): e for e in everything if e.id in in_force or e.state == "failed"}
    taken_back = {(e.prompt, e.target) for e in everything} - set(tried)
    edits = [record for record in suite.edits if (record.prompt, record.target) in tried]
    if not edits:
        raise UsageError(
            f"none of the {len(suite.edits)} edits of suite `{suite.name}` is in this project",
            hint=f"`scen edit --suite {suite.name} --first 100` makes them",
        )
    ever_edited = {edit.prompt for edit in everything}
    unedited = suite.locality or [record.prompt for record in suite.edits]
    others = [prompt for prompt in dict.fromkeys(unedited) if prompt not in ever_edited and editor.fits(prompt)]
    locality = others[:LOCALITY_PROMPTS]
    rephrases = [(text, record) for record in edits for text in record.rephrases[:REPHRASES]]

    base_locality = editor.answer(locality, patched=False, **options).texts
    columns, edits_fired = {}, {}
    for patched in (True, False):
        of_edits = editor.answer([record.prompt for record in edits], patched=patched, **options)
        of_rephrases = editor.answer([text for text, _ in rephrases], patched=patched, **options)
        of_locality = editor.answer(locality, patched=True, **options) if patched else None
        columns[patched] = Figures(
            reliability=Share.of(_equal(of_edits.texts, [record.target for record in edits])),
            generality=Share.of(_equal(of_rephrases.texts, [record.target for _, record in rephrases])),
            locality=Share.of(_equal(of_locality.texts if of_locality else base_locality, base_locality)),
            token_accuracy=Share.of(token_accuracy(editor, edits, patched)),
        )
        if of_locality:
            edits_fired = {"rephrases": of_rephrases.edits, "locality": of_locality.edits}

    own = [tried[(record.prompt, record.target)] for _, record in rephrases]
    learned = [(text, edit) for (text, _), edit in zip(rephrases, own, strict=True) if edit.state != "failed"]
    given = editor.answer([text for text, _ in learned], edits=[edit.id for _, edit in learned], **options)
    given_right = _equal(given.texts, [edit.target for _, edit in learned])
    return Evaluation(
        suite=suite.name,
        decoding=decoding,
        last_change=last_change,
        records=len(suite.edits),
        edits=len(edits),
        left_out=sum((record.prompt, record.target) in taken_back for record in suite.edits),
        not_learned=sum(tried[(record.prompt, record.target)].state == "failed" for record in edits),
        patched=columns[True],
        base=columns[False],
        generality_given_expert=Share.of(given_right + [False] * (len(rephrases) - len(learned))),
        rephrases_routed=Share.of(
            [fired == edit.id for fired, edit in zip(edits_fired["rephrases"], own, strict=True)]
        ),
        locality_fired=Share.of([fired is not None for fired in edits_fired["locality"]]),
    )


@torch.no_grad()
def token_accuracy(editor: Editor, records: list[EditRecord], patched: bool) -> list[bool]:
    """Teacher-forced: for each target token, whether it is the likeliest one given the *right*
    tokens before it. Flatters every editor, since a model that really generates has no such help."""
    outcomes: list[bool] = []
    for record in records:
        ready = editor.prepare(record)
        ids = torch.tensor([ready.input_ids], device=editor.base.device)
        chosen = editor.route([record.prompt]).edits if patched else [None]
        with editor.patch().using(editor.patch().rows_of(chosen)):
            logits = editor.model(input_ids=ids, use_cache=False).logits
        predicted = logits[0, -ready.target_length - 1 : -1].argmax(dim=-1)
        outcomes += (predicted == ids[0, -ready.target_length :]).tolist()
    return outcomes


def _equal(answers: list[str], wanted: list[str]) -> list[bool]:
    return [answer == text for answer, text in zip(answers, wanted, strict=True)]
