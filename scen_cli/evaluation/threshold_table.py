"""Choose theta: for each rate of false activations, the threshold it leads to and what that threshold costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.metrics import Share
from scen_cli.model.generation import BATCH
from scen_cli.model.routing import choose
from scen_cli.neurons.calibration import expected_to_fire
from scen_cli.project.ledger import now
from scen_cli.project.ledger_rows import Threshold

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # shown beside the rate that is asked for


@dataclass(frozen=True)
class Choice:
    """A threshold and its effects.

    Attributes:
        threshold: The threshold, and how it was chosen.
        fresh: Guard prompts that it was not calibrated on, and how many of them activate an edit.
        expected_fresh: The least and the most that were expected to.
        own: Edits whose own prompt activates them.
        rephrases: Rephrases of active edits, not trained on, that activate their edit.
    """

    threshold: Threshold
    fresh: Share
    expected_fresh: tuple[int, int]
    own: Share
    rephrases: Share

    def as_dict(self) -> dict[str, object]:
        shares = {name: vars(getattr(self, name)) for name in ("fresh", "own", "rephrases")}
        return {**vars(self.threshold), **shares, "expected_fresh": list(self.expected_fresh)}


class ThresholdTable:
    """Activations of all active neurons on the guard and on the rephrases of their edits, and thresholds for them."""

    def __init__(self, editor: Editor) -> None:
        """Raises `UsageError` if there is no guard, or no active edit."""
        self._index = editor.index
        self._index.load()
        if editor.project.guard() is None:
            raise UsageError(
                "this project has no guard: no prompts to calibrate theta on",
                hint="`--guard FILE` takes them from a file, `--guard self` lets the base write them",
            )
        if not self._index.experts:
            raise UsageError("no edit is active: nothing can be activated", hint="`scen edit edits.jsonl` makes edits")
        self._fresh = self._index.max_activations("report")[1]
        edits = editor.project.ledger.edits("active")
        rephrases = [
            (text, edit.expert)
            for edit in edits
            for text in edit.rephrases
            if text not in edit.train_rephrases and editor.fits(text)
        ]
        row_of = {expert: row for row, expert in enumerate(editor.patch().edits)}
        self._right_rows = torch.tensor([row_of[expert] for _text, expert in rephrases if expert is not None])
        texts = [text for text, _expert in rephrases]
        batches = [editor.route(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        found = [batch.activations.cpu() for batch in batches]
        self._on_rephrases = torch.cat(found or [torch.empty(0, len(row_of))])

    def for_rate(self, false_activation: float) -> Choice:
        """The threshold for a rate of false activations. Raises `UsageError` if the guard has too few prompts."""
        found = self._index.calibrate(false_activation)
        if found is None:
            raise UsageError(f"a rate of {false_activation} cannot be calibrated")
        return self.describe(found)

    def for_theta(self, theta: float) -> Choice:
        """A threshold that is set by hand."""
        return self.describe(Threshold(theta, "hand", now()))

    def rows(self, *rates: float) -> list[Choice]:
        """`RATES` and these rates, without those that the guard has too few prompts for."""
        choices = []
        for rate in sorted({*RATES, *rates}):
            try:
                choices.append(self.for_rate(rate))
            except UsageError:
                continue
        return choices

    def describe(self, threshold: Threshold) -> Choice:
        """The effects of a threshold, however it was chosen."""
        theta = threshold.theta
        fresh = Share.of((self._fresh > theta).tolist())
        k = round((threshold.fpr_expected or 0) * ((threshold.n_guard or 0) + 1))
        expected = expected_to_fire(k, threshold.n_guard, fresh.total) if threshold.n_guard else (0, fresh.total)
        own = Share.of((self._index.own_activations.all()[:, 0] > theta).tolist())
        routed = choose(self._on_rephrases, theta)
        return Choice(threshold, fresh, expected, own, Share.of((routed == self._right_rows).tolist()))
