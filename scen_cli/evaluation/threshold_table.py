"""Choosing theta for a project: what each rate of false activations would take, and what it would cost."""

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

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # shown beside the one that is asked for


@dataclass(frozen=True)
class Choice:
    """A threshold, and what it gives: `fresh` guard prompts (which it was not set by) that fire, and how many were
    expected to; `own`: edits that call themselves; `rephrases` of active edits that call their own (those
    that they learned left out)."""

    threshold: Threshold
    fresh: Share
    expected_fresh: tuple[int, int]
    own: Share
    rephrases: Share

    def as_dict(self) -> dict[str, object]:
        shares = {name: vars(getattr(self, name)) for name in ("fresh", "own", "rephrases")}
        return {**vars(self.threshold), **shares, "expected_fresh": list(self.expected_fresh)}


class Calibration:
    """Activations of all active neurons on the guard and on the rephrases of their edits."""

    def __init__(self, editor: Editor) -> None:
        """Raises `UsageError` if there is nothing to calibrate with or for."""
        self._index = editor.index
        self._index.load()
        if editor.project.guard() is None:
            raise UsageError(
                "this project has no guard: no prompts to calibrate theta with",
                hint="`--guard FILE` takes some, `--guard self` lets the base write them",
            )
        if not self._index.experts:
            raise UsageError("no edit is active: nothing can fire", hint="`scen edit edits.jsonl` makes some")
        self._fresh = self._index.strongest_on("report")[1]
        edits = editor.project.ledger.edits("active")
        wanted = [(text, edit.expert) for edit in edits for text in edit.rephrases if text not in edit.train_rephrases]
        wanted = [(text, expert) for text, expert in wanted if editor.fits(text)]
        rows = {expert: row for row, expert in enumerate(editor.patch().edits)}
        self._owners = torch.tensor([rows[expert] for _text, expert in wanted if expert is not None])
        texts = [text for text, _expert in wanted]
        batches = [editor.route(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        self._on_rephrases = torch.cat([found.activations.cpu() for found in batches] or [torch.empty(0, len(rows))])

    def choice(self, false_activation: float) -> Choice:
        """What a rate of false activations takes. Raises `UsageError` if there are too few guard prompts for it."""
        index = self._index
        found = index.calibrated(index.strongest, index.limit, false_activation)
        if found is None:
            raise UsageError(f"a rate of {false_activation} cannot be calibrated")
        return self.of(found)

    def by_hand(self, theta: float) -> Choice:
        """What a threshold that was chosen by hand gives."""
        return self.of(Threshold(theta, "hand", now()))

    def table(self, *rates: float) -> list[Choice]:
        """The usual rates and these, as far as the guard can tell them."""
        choices = []
        for rate in sorted({*RATES, *rates}):
            try:
                choices.append(self.choice(rate))
            except UsageError:
                continue
        return choices

    def of(self, threshold: Threshold) -> Choice:
        """What a threshold gives, however it was chosen."""
        theta = threshold.theta
        fired = Share.of((self._fresh > theta).tolist())
        k = round((threshold.fpr_expected or 0) * ((threshold.n_guard or 0) + 1))
        expected = expected_to_fire(k, threshold.n_guard, fired.total) if threshold.n_guard else (0, fired.total)
        own = Share.of((self._index.own.all()[:, 0] > theta).tolist())
        called = choose(self._on_rephrases, theta)
        return Choice(threshold, fired, expected, own, Share.of((called == self._owners).tolist()))
