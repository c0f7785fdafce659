"""The result of an evaluation, and the rules that every evaluation shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scen_cli.data.suites import Suite
from scen_cli.errors import UsageError
from scen_cli.evaluation.metrics import Figure
from scen_cli.evaluation.samples import LOCALITY_PROMPTS, Sample, Scored
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project

DECODING: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "paper": {"do_sample": False, "max_new_tokens": 50, "num_beams": 4, "repetition_penalty": 1.1},
}


@dataclass(frozen=True)
class Evaluation:
    """The figures of a project on a suite, and the answers that they were counted from.

    Attributes:
        suite: Name of the suite.
        decoding: A key of `DECODING`, or `teacher-forced`.
        theta: The threshold.
        last_change: The newest change of the ledger when scoring began.
        records: Records of the suite.
        edits: Records that were scored; `not_learned` of them are failed edits and count as wrong.
        left_out: Records whose edits were superseded or reverted since.
        too_long: Prompts or texts that do not fit the base's context.
        guarded: Locality prompts of the suite that stand in the guard and are not scored.
        figures: By name, such as `generality` or `near-miss/same-subject`.
        curves: Retention, threshold sweep, activation map, confusions.
        samples: Every prompt with its answers.
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
        """Everything but the samples, in plain types."""
        plain = {name: value for name, value in vars(self).items() if name != "samples"}
        return {**plain, "figures": {name: figure.as_dict() for name, figure in self.figures.items()}}


class FitsPrompts(Protocol):
    """Knows which prompts fit the base's context."""

    def fits(self, prompt: str) -> bool: ...


def record_evaluation(project: Project, evaluation: Evaluation) -> int:
    """Write an evaluation and its samples into the ledger; returns its number."""
    settings = {"decoding": evaluation.decoding, "theta": evaluation.theta}
    samples = [sample.as_dict() for sample in evaluation.samples]
    with project.writing():
        return project.record_evaluation(
            evaluation.suite, settings, evaluation.as_dict(), evaluation.last_change, samples
        )


def check_decoding(name: str) -> None:
    """Raise `UsageError` for an unknown decoding."""
    if name not in DECODING:
        raise UsageError(f"decoding `{name}` is not known", hint=f"one of: {', '.join(DECODING)}")


def claimed_prompts(edits: Sequence[Edit], scored: Sequence[Scored]) -> set[str]:
    """Prompts that were ever edited, and their rephrases: they cannot be locality prompts."""
    texts = {text for edit in edits for text in (edit.prompt, *edit.rephrases, *edit.train_rephrases)}
    return texts | {text for item in scored for text in item.record.rephrases}


def locality_prompts(loaded: FitsPrompts, suite: Suite, claimed: set[str]) -> list[str]:
    """The suite's prompts that must not change, or the prompts of its records that were never edited.

    Prompts that an edit claims, or that do not fit the base's context, are left out.
    """
    unedited = suite.locality or [record.prompt for record in suite.edits]
    free = [prompt for prompt in dict.fromkeys(unedited) if prompt not in claimed and loaded.fits(prompt)]
    return free[:LOCALITY_PROMPTS]
