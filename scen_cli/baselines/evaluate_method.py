"""Score a project that edits by another method than SCEN: the paper's three figures, by the same prompts and rules."""

from __future__ import annotations

from scen_cli.baselines.method_editor import MethodEditor
from scen_cli.data.suites import Suite
from scen_cli.evaluation.evaluate_project import (
    DECODING,
    Evaluation,
    check_decoding,
    claimed_prompts,
    locality_prompts,
)
from scen_cli.evaluation.metrics import Figure, Share
from scen_cli.evaluation.samples import PAPERS_ROLES, Sample, left_out, not_learned, papers_prompts, scored_edits


def evaluate_method(editor: MethodEditor, suite: Suite, decoding: str = "greedy") -> Evaluation:
    """Reliability, Generality and Locality of the suite's edits that this project has made. Nothing is routed as SCEN
    routes, so that no figure tells which edit fired.

    Raises `UsageError` if none of the suite's edits is in the project.
    """
    check_decoding(decoding)
    ledger = editor.project.ledger
    last_change, everything = ledger.last_change(), ledger.edits()
    scored = scored_edits(everything, {edit for edit, _prompt in ledger.active_prompts()}, suite)
    guard = {prompt.prompt for prompt in ledger.guard()}  # the method was given all of it
    locality = locality_prompts(editor, suite, claimed_prompts(everything, scored) | guard)
    wanted = list(papers_prompts(scored, locality))
    asked = [one for one in wanted if editor.fits(one.prompt)]
    prompts = [one.prompt for one in asked]
    by_base = editor.answer(prompts, patched=False, **DECODING[decoding])
    patched = editor.answer(prompts, **DECODING[decoding])
    samples = [
        Sample(
            role=one.role,
            kind=one.kind,
            prompt=str(one.prompt),
            wanted=own if one.target is None else one.target,
            base=own,
            patched=text,
            edit=one.edit.id if one.edit else None,
            expected_edit=None,
            fired=None,
            right=one.is_right(text, own),
        )
        for one, own, text in zip(asked, by_base, patched, strict=True)
    ]
    return Evaluation(
        suite=suite.name,
        decoding=decoding,
        theta=ledger.theta(),
        last_change=last_change,
        records=len(suite.edits),
        edits=len(scored),
        not_learned=not_learned(scored),
        left_out=left_out(everything, scored, suite),
        too_long=len(wanted) - len(asked),
        guarded=sum(prompt in guard for prompt in suite.locality),
        figures={role: _figure(role, [one for one in samples if one.role == role]) for role in PAPERS_ROLES},
        samples=samples,
    )


def _figure(role: str, samples: list[Sample]) -> Figure:
    base = None if role == "locality" else Share.of([one.base == one.wanted for one in samples])
    return Figure(Share.of([one.right for one in samples]), base)
