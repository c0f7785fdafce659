"""Score a project on a suite, after its last edit, by generation and exact match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scen_cli.data.suites import Suite
from scen_cli.editing.editor import Editor
from scen_cli.editing.project_editor import ProjectEditor
from scen_cli.errors import UsageError
from scen_cli.evaluation.cached_generator import CachedGenerator, no_progress
from scen_cli.evaluation.curves import activation_map, confusions, retention, theta_sweep, thetas_around
from scen_cli.evaluation.metrics import Figure, Mean, Share
from scen_cli.evaluation.samples import (
    LOCALITY_PROMPTS,
    Asked,
    Sample,
    Scored,
    ask,
    figures_of,
    further_prompts,
    left_out,
    not_learned,
    papers_prompts,
    scored_edits,
)
from scen_cli.evaluation.teacher_forced import Text, next_token_kl, score
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project

DECODING: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "paper": {"do_sample": False, "max_new_tokens": 50, "num_beams": 4, "repetition_penalty": 1.1},
}
OPENING = ("How are you today?", "I am well, thank you.")  # an earlier turn, where the suite has none to offer


@dataclass(frozen=True)
class Evaluation:
    """Figures by name, and what they were counted from.

    `reliability`: the edit's prompt gives exactly its target. `generality`: so do its first three
    rephrases. `locality` (equation 2): a prompt that was never edited gives exactly what the base
    gives. `generality-given-expert` hands each rephrase its own edit's expert: the most that routing
    could reach. `portability/KIND`, `near-miss/KIND` and `robustness/KIND` likewise, by generation.
    `drift-changed`: locality prompts whose greedy output changed at all; `drift-kl`: KL divergence of
    their next-token distributions. `token-accuracy` is teacher-forced.

    `edits` of the suite's `records` were tried and are scored; `left_out`: records whose edits were
    superseded or reverted since, which are not; `too_long`: prompts that the base's context cannot take,
    which were not asked; `guarded`: locality prompts that stand in the guard, which are not scored.
    `last_change`: the ledger's newest change when scoring began. `curves`: retention, threshold sweep,
    activation map, confusions.
    """

    suite: str
    decoding: str
    theta: float
    last_change: int
    records: int
    edits: int
    not_learned: int
    left_out: int
    too_long: int
    figures: dict[str, Figure]
    guarded: int = 0
    curves: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All but the samples, in plain types."""
        plain = {name: value for name, value in vars(self).items() if name != "samples"}
        return {**plain, "figures": {name: figure.as_dict() for name, figure in self.figures.items()}}


def evaluate(
    editor: Editor,
    suite: Suite,
    decoding: str = "greedy",
    quick: bool = False,
    tell: Callable[[int], None] = no_progress,
) -> Evaluation:
    """Score the suite's edits that this project has made, or tried and failed to make; the latter count
    as wrong. `quick`: the paper's three figures and nothing more. `tell` hears how many answers there are
    so far. Others may commit meanwhile.

    Raises `UsageError` if none of the suite's edits is in the project.
    """
    check_decoding(decoding)
    last_change = editor.project.ledger.last_change()  # read first: a change from here on makes figures old
    with editor.snapshot() as patch:
        everything = editor.project.ledger.edits()
        scored = scored_edits(everything, set(patch.expert_of), suite)
        asker = CachedGenerator(editor, patch, DECODING[decoding], tell)
        guard = guard_prompts(editor.project)
        claimed = claimed_prompts(everything, scored) | guard
        locality = locality_prompts(editor, suite, claimed)
        wanted = list(papers_prompts(scored, locality))
        if not quick:
            wanted += _further(asker, scored, locality, claimed)
        asked = [one for one in wanted if editor.fits(one.prompt)]
        samples = ask(asker, asked)
        figures = figures_of(samples)
        figures["generality-given-expert"] = _given_expert(asker, asked)
        if not quick:
            figures |= _drift(asker, scored, locality, claimed) | _token_accuracy(editor, scored, samples)
        return Evaluation(
            suite=suite.name,
            decoding=decoding,
            theta=patch.theta,
            last_change=last_change,
            records=len(suite.edits),
            edits=len(scored),
            not_learned=not_learned(scored),
            left_out=left_out(everything, scored, suite),
            too_long=len(wanted) - len(asked),
            guarded=sum(prompt in guard for prompt in suite.locality),
            figures=figures,
            curves={} if quick else _curves(asker, scored, asked, samples),
            samples=samples,
        )


def sweep_theta(
    editor: Editor, suite: Suite, thetas: Sequence[float], decoding: str = "greedy"
) -> list[dict[str, Any]]:
    """Reliability, Generality and Locality of the active edits at each of these thresholds (Fig. 4)."""
    check_decoding(decoding)
    with editor.snapshot() as patch:
        everything = editor.project.ledger.edits()
        scored = scored_edits(everything, set(patch.expert_of), suite)
        claimed = claimed_prompts(everything, scored) | guard_prompts(editor.project)
        locality = locality_prompts(editor, suite, claimed)
        asked = [one for one in papers_prompts(scored, locality) if editor.fits(one.prompt)]
        return theta_sweep(CachedGenerator(editor, patch, DECODING[decoding]), asked, thetas)


def keep(project: Project, evaluation: Evaluation) -> int:
    """Write the figures and what they were counted from into the ledger; returns the evaluation's number."""
    settings = {"decoding": evaluation.decoding, "theta": evaluation.theta}
    samples = [sample.as_dict() for sample in evaluation.samples]
    with project.writing():
        return project.record_evaluation(
            evaluation.suite, settings, evaluation.as_dict(), evaluation.last_change, samples
        )


def check_decoding(name: str) -> None:
    """Raise `UsageError` for a decoding that there is not."""
    if name not in DECODING:
        raise UsageError(f"decoding `{name}` is not known", hint=f"one of: {', '.join(DECODING)}")


def claimed_prompts(edits: Sequence[Edit], scored: Sequence[Scored]) -> set[str]:
    """Prompts that were ever edited, and all rephrases of them: no locality prompts."""
    texts = {text for edit in edits for text in (edit.prompt, *edit.rephrases, *edit.train_rephrases)}
    return texts | {text for one in scored for text in one.record.rephrases}


def guard_prompts(project: Project) -> set[str]:
    """Prompts that neurons learned from or theta was set by: nothing may be reported on them."""
    return {prompt.prompt for prompt in project.ledger.guard() if prompt.split != "report"}


def locality_prompts(editor: ProjectEditor, suite: Suite, claimed: set[str]) -> list[str]:
    """The suite's prompts that must not change, or those of its records that were never edited; without
    any that an edit claims, or that the base cannot take."""
    unedited = suite.locality or [record.prompt for record in suite.edits]
    free = [prompt for prompt in dict.fromkeys(unedited) if prompt not in claimed and editor.fits(prompt)]
    return free[:LOCALITY_PROMPTS]


def _further(
    asker: CachedGenerator, scored: Sequence[Scored], locality: Sequence[str], claimed: set[str]
) -> list[Asked]:
    """The further prompts, without neighbours that an edit claims."""
    earlier = OPENING
    if locality:
        earlier = (locality[0], asker.texts(locality[:1], [None])[0] or OPENING[1])
    return [one for one in further_prompts(scored, earlier) if not (one.role == "near-miss" and one.prompt in claimed)]


def _given_expert(asker: CachedGenerator, asked: Sequence[Asked]) -> Figure:
    """Generality when each rephrase is handed its own edit's expert; what was not learned stays wrong."""
    rephrases = [one for one in asked if one.role == "generality"]
    experts = [one.edit.expert if one.edit else None for one in rephrases]
    learned = [(one, expert) for one, expert in zip(rephrases, experts, strict=True) if expert is not None]
    answers = asker.texts([one.prompt for one, _ in learned], [expert for _, expert in learned])
    right = [answer == one.target for answer, (one, _) in zip(answers, learned, strict=True)]
    return Figure(Share.of(right + [False] * (len(rephrases) - len(learned))))


def _drift(
    asker: CachedGenerator, scored: Sequence[Scored], locality: list[str], claimed: set[str]
) -> dict[str, Figure]:
    """On prompts the data calls unrelated where it does, else on the locality prompts."""
    unrelated = dict.fromkeys(n.prompt for one in scored for n in one.record.locality if n.kind == "unrelated")
    prompts = [prompt for prompt in unrelated if prompt not in claimed and asker.patched.fits(prompt)] or locality
    fired = asker.route(prompts)
    before, after = asker.tokens(prompts, [None] * len(prompts)), asker.tokens(prompts, fired)
    changed = Share.of([old != new for old, new in zip(before, after, strict=True)])
    any_fired = Share.of([edit is not None for edit in fired])
    kl = Mean.of(next_token_kl(asker.patched, prompts, fired))
    return {"drift-changed": Figure(changed, fired=any_fired), "drift-kl": Figure(kl)}


def _token_accuracy(editor: Editor, scored: Sequence[Scored], samples: Sequence[Sample]) -> dict[str, Figure]:
    """For each target token, whether it is the likeliest one given the *right* tokens before it. Flatters
    every editor, since a model that really generates has no such help."""
    ready = [editor.prepare(one.record) for one in scored]
    texts = [Text(one.input_ids, one.target_length) for one in ready]
    fired = [sample.fired for sample in samples if sample.role == "reliability"]
    patched, base = (
        Share.of([right for scores in score(editor, texts, edits) for right in scores.likeliest])
        for edits in (fired, [None] * len(texts))
    )
    return {"token-accuracy": Figure(patched, base)}


def _curves(
    asker: CachedGenerator, scored: Sequence[Scored], asked: Sequence[Asked], samples: Sequence[Sample]
) -> dict[str, Any]:
    return {
        "retention": retention(asker, scored),
        "theta": theta_sweep(asker, asked, thetas_around(asker.patch.theta)),
        "activations": activation_map(asker, scored),
        "confusions": confusions(samples),
    }
