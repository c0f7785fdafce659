"""Score a project on a suite, after its last edit, by generation and exact match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scen_cli.data.suites import Suite
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.editing.project_editor import ProjectEditor
from scen_cli.editing.project_patch import ProjectPatch
from scen_cli.evaluation.cached_generator import CachedGenerator
from scen_cli.evaluation.curves import activation_map, confusions, retention, theta_sweep, thetas_around
from scen_cli.evaluation.evaluation import DECODING, Evaluation, check_decoding, claimed_prompts, locality_prompts
from scen_cli.evaluation.metrics import Figure, Mean, Share
from scen_cli.evaluation.near_questions import negated_question, swapped_questions
from scen_cli.evaluation.samples import (
    PAPER_ROLES,
    UNTOUCHED_TOKENS,
    Probe,
    Sample,
    Scored,
    answer_probes,
    figures_of,
    further_probes,
    left_out,
    not_learned,
    paper_probes,
    scored_edits,
)
from scen_cli.evaluation.sentences import sentence_figures
from scen_cli.evaluation.teacher_forced import Text, next_token_kl, score
from scen_cli.model.generation import Progress, no_progress
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project

DEFAULT_TURN = ("How are you today?", "I am well, thank you.")  # the earlier turn, if the suite has no locality prompt


def evaluate(
    editor: ProjectEditor,
    suite: Suite,
    decoding: str = "greedy",
    quick: bool = False,
    progress: Progress = no_progress,
) -> Evaluation:
    """Score the suite's edits that this project has made, or has tried and failed to make: these count as wrong.

    Other processes may commit edits at the same time; they are not seen.

    Args:
        editor: The project, loaded. Without SCEN's routing, only the paper's three figures are measured.
        suite: Edits with their rephrases, and locality prompts.
        decoding: `greedy`, or `paper` (4 beams, repetition penalty 1.1).
        quick: Only the paper's figures, and no answers that no edit can have changed.
        progress: Called with the number of prompts that were routed or answered, and of all that are known so far.

    Returns:
        The figures: `reliability` (the prompt gives its target), `generality` (its rephrases do), `locality` (an
        unedited prompt gives the base's answer; equations 1 to 3), `generality-given-expert` (each rephrase answered
        by its own expert: an upper bound of routing), those of `sentence_figures`, `portability/KIND`,
        `near-miss/KIND` and `robustness/KIND`, `drift-changed` (unedited prompts whose output changed), `drift-kl`
        (KL divergence of the next token, nats), `token-accuracy` (teacher-forced).

    Raises:
        UsageError: None of the suite's edits is in the project, or the decoding is unknown.
    """
    check_decoding(decoding)
    if not isinstance(editor, PatchedModel):
        return _evaluate_unrouted(editor, suite, decoding)
    last_change = editor.project.ledger.last_change()  # before anything else: a later change makes the figures old
    with editor.snapshot() as patch:
        generator = CachedGenerator(editor, patch, DECODING[decoding], progress)
        edits = editor.project.ledger.edits()
        scored = scored_edits(edits, set(patch.expert_of), suite)
        guard = guard_prompts(editor.project)
        claimed = claimed_prompts(edits, scored) | guard
        locality = locality_prompts(editor, suite, claimed)
        probes = list(paper_probes(scored, locality))
        if not quick:
            probes += _further_probes(generator, scored, locality, claimed)
        asked = [probe for probe in probes if editor.fits(probe.prompt)]
        samples = answer_probes(generator, asked, quick)
        figures = figures_of(samples)
        figures["generality-given-expert"] = _given_expert(generator, asked)
        figures |= sentence_figures(asked, samples, _targets(edits))
        if not quick:
            figures |= _drift(generator, scored, locality, claimed) | _token_accuracy(editor, scored, samples)
        return Evaluation(
            **_counts(suite, edits, scored, guard),
            decoding=decoding,
            theta=patch.theta,
            last_change=last_change,
            too_long=len(probes) - len(asked),
            figures=figures,
            curves={} if quick else _curves(generator, scored, asked, samples),
            samples=samples,
        )


def _evaluate_unrouted(editor: ProjectEditor, suite: Suite, decoding: str) -> Evaluation:
    """The paper's three figures of a project that edits by another method: no figure tells which edit answered."""
    ledger = editor.project.ledger
    last_change, edits = ledger.last_change(), ledger.edits()
    scored = scored_edits(edits, {edit for edit, _prompt in ledger.active_prompts()}, suite)
    guard = {prompt.prompt for prompt in ledger.guard()}  # the method has learned from all of them
    locality = locality_prompts(editor, suite, claimed_prompts(edits, scored) | guard)
    probes = list(paper_probes(scored, locality))
    asked = [probe for probe in probes if editor.fits(probe.prompt)]
    prompts = [probe.prompt for probe in asked]
    base = editor.answer(prompts, patched=False, **DECODING[decoding]).texts
    patched = editor.answer(prompts, **DECODING[decoding]).texts
    samples = [probe.sample(old, new, None, None) for probe, old, new in zip(asked, base, patched, strict=True)]
    figures = figures_of(samples, routed=False)
    return Evaluation(
        **_counts(suite, edits, scored, guard),
        decoding=decoding,
        theta=ledger.theta(),
        last_change=last_change,
        too_long=len(probes) - len(asked),
        figures={role: figures[role] for role in PAPER_ROLES},
        samples=samples,
    )


def _counts(suite: Suite, edits: Sequence[Edit], scored: Sequence[Scored], guard: set[str]) -> dict[str, Any]:
    """The fields of an evaluation that say what of the suite was scored."""
    return {
        "suite": suite.name,
        "records": len(suite.edits),
        "edits": len(scored),
        "not_learned": not_learned(scored),
        "left_out": left_out(edits, scored, suite),
        "guarded": sum(prompt in guard for prompt in suite.locality),
    }


def sweep_theta(
    patched: PatchedModel, suite: Suite, thetas: Sequence[float], decoding: str = "greedy"
) -> list[dict[str, Any]]:
    """Reliability, Generality and Locality of the active edits at each of these thresholds (Fig. 4)."""
    check_decoding(decoding)
    with patched.snapshot() as patch:
        probes = _paper_probes(patched, patch, suite)
        return theta_sweep(CachedGenerator(patched, patch, DECODING[decoding]), probes, thetas)


def _paper_probes(patched: PatchedModel, patch: ProjectPatch, suite: Suite) -> list[Probe]:
    edits = patched.project.ledger.edits()
    scored = scored_edits(edits, set(patch.expert_of), suite)
    claimed = claimed_prompts(edits, scored) | guard_prompts(patched.project)
    locality = locality_prompts(patched, suite, claimed)
    return [probe for probe in paper_probes(scored, locality) if patched.fits(probe.prompt)]


def _targets(edits: Sequence[Edit]) -> dict[int, list[str]]:
    """The targets of the edits of each expert."""
    targets: dict[int, list[str]] = {}
    for edit in edits:
        targets.setdefault(edit.expert or edit.id, []).append(edit.target)
    return targets


def guard_prompts(project: Project) -> set[str]:
    """Guard prompts that neurons or theta were fitted to: no figure is reported on them."""
    return {prompt.prompt for prompt in project.ledger.guard() if prompt.split != "report"}


def _further_probes(
    generator: CachedGenerator, scored: Sequence[Scored], locality: Sequence[str], claimed: set[str]
) -> list[Probe]:
    """Portability, near-miss and robustness probes, without near-miss prompts that an edit claims."""
    turn = DEFAULT_TURN
    if locality:
        turn = (locality[0], generator.texts(locality[:1], [None])[0] or DEFAULT_TURN[1])
    probes = list(further_probes(scored, turn))
    probes += [
        Probe("near-miss", question, kind="swapped", edit=item.edit) for item, question in swapped_questions(scored)
    ]
    negated = [(item, negated_question(item.record.prompt, item.record.subject)) for item in scored]
    probes += [Probe("near-miss", question, kind="negated", edit=item.edit) for item, question in negated if question]
    return [probe for probe in probes if not (probe.role == "near-miss" and probe.prompt in claimed)]


def _given_expert(generator: CachedGenerator, asked: Sequence[Probe]) -> Figure:
    """Generality if each rephrase is answered by its own edit's expert; rephrases of failed edits stay wrong."""
    rephrases = [probe for probe in asked if probe.role == "generality"]
    answerable = [
        (probe, probe.edit.expert) for probe in rephrases if probe.edit is not None and probe.edit.expert is not None
    ]
    answers = generator.texts([probe.prompt for probe, _ in answerable], [expert for _, expert in answerable])
    right = [answer == probe.target for answer, (probe, _) in zip(answers, answerable, strict=True)]
    return Figure(Share.of(right + [False] * (len(rephrases) - len(answerable))))


def _drift(
    generator: CachedGenerator, scored: Sequence[Scored], locality: list[str], claimed: set[str]
) -> dict[str, Figure]:
    """Changes on prompts that the data calls unrelated to an edit; if it names none, on the locality prompts."""
    patched = generator.patched
    unrelated = dict.fromkeys(n.prompt for item in scored for n in item.record.locality if n.kind == "unrelated")
    prompts = [prompt for prompt in unrelated if prompt not in claimed and patched.fits(prompt)] or locality
    routed = generator.route(prompts)
    limits = [UNTOUCHED_TOKENS if edit is None else None for edit in routed]  # the base answers: nothing can change
    before, after = generator.tokens(prompts, [None] * len(prompts), limits), generator.tokens(prompts, routed, limits)
    changed = Share.of([old != new for old, new in zip(before, after, strict=True)])
    fired = Share.of([edit is not None for edit in routed])
    kl = Mean.of(next_token_kl(patched, prompts, routed))
    return {"drift-changed": Figure(changed, fired=fired), "drift-kl": Figure(kl)}


def _token_accuracy(patched: PatchedModel, scored: Sequence[Scored], samples: Sequence[Sample]) -> dict[str, Figure]:
    """For each target token, whether it is the most likely one given the *right* tokens before it.

    This flatters every editor: a model that generates has no such help.
    """
    tokenized = [patched.tokenize_edit(item.record) for item in scored]
    texts = [Text(edit.input_ids, edit.target_length) for edit in tokenized]
    routed = [sample.routed_edit for sample in samples if sample.role == "reliability"]
    shares = [
        Share.of([right for scores in score(patched, texts, edits) for right in scores.likeliest])
        for edits in (routed, [None] * len(texts))
    ]
    return {"token-accuracy": Figure(*shares)}


def _curves(
    generator: CachedGenerator, scored: Sequence[Scored], asked: Sequence[Probe], samples: Sequence[Sample]
) -> dict[str, Any]:
    return {
        "retention": retention(generator, scored),
        "theta": theta_sweep(generator, asked, thetas_around(generator.patch.theta)),
        "activations": activation_map(generator, scored),
        "confusions": confusions(samples),
    }
