"""Edits that may be mistaken for one another, from cached keys alone: no model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from scen_cli.model.subject_filter import BLOCKED
from scen_cli.neurons.index import Index
from scen_cli.project.project import Project

SMALL_MARGIN = 0.05


@dataclass(frozen=True)
class Pair:
    """The neuron of `edit` on the prompt of `other`: its activation, and by how much `other`'s own is larger."""

    edit: int
    other: int
    activation: float
    margin: float


@dataclass(frozen=True)
class Confusions:
    """Edits that may be confused. An expert that edits share is named by the first of them.

    Attributes:
        theta: The threshold.
        pairs: The edits with the largest activations on each other's prompts.
        small_margin: (edit, margin) of edits whose activation on their own prompt exceeds theta and every other
            neuron's by less than `SMALL_MARGIN`.
        guard: (prompt, edit, activation) of guard prompts that activate an edit.
        misrouted: From the newest evaluation: (edit, whose prompts it answered, how many).
        never_routed: From the newest evaluation: edits that none of their rephrases was routed to.
    """

    theta: float
    pairs: list[Pair]
    small_margin: list[tuple[int, float]]
    guard: list[tuple[str, int, float]]
    misrouted: list[tuple[int, int | None, int]]
    never_routed: list[int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_confusions(project: Project, top: int) -> Confusions:
    """The `top` of each kind."""
    index, theta = Index(project), project.ledger.theta()
    index.load()
    misrouted, never_routed = _from_last_evaluation(project)
    if not index.experts:
        return Confusions(theta, [], [], [], misrouted[:top], never_routed[:top])
    on_keys = index.activations_on_keys()  # (keys, experts)
    own_rows = torch.tensor([index.row_of[expert] for expert in index.expert_of_key])
    own = on_keys[torch.arange(len(own_rows)), own_rows]
    strongest, others = on_keys.scatter(1, own_rows[:, None], -torch.inf).max(dim=1)
    pairs = [
        Pair(
            edit=index.experts[int(others[key])],
            other=index.expert_of_key[key],
            activation=float(strongest[key]),
            margin=float(own[key] - strongest[key]),
        )
        for key in strongest.argsort(descending=True)[:top].tolist()
        if strongest[key] > BLOCKED
    ]
    margins = own - strongest.clamp(min=theta)
    small = [
        (index.expert_of_key[key], float(margins[key]))
        for key in margins.argsort().tolist()
        if margins[key] < SMALL_MARGIN
    ]
    return Confusions(theta, pairs, small[:top], _activating(index, theta)[:top], misrouted[:top], never_routed[:top])


def _activating(index: Index, theta: float) -> list[tuple[str, int, float]]:
    """(prompt, edit, activation) of guard prompts above theta, the largest first."""
    found = []
    for split in ("calibration", "report"):
        prompts, activations, experts = index.max_activations(split)
        for row in (activations > theta).nonzero().flatten().tolist():
            found.append((prompts[row], experts[row], float(activations[row])))
    return sorted(found, key=lambda item: -item[2])


def _from_last_evaluation(project: Project) -> tuple[list[tuple[int, int | None, int]], list[int]]:
    """`misrouted` and `never_routed` of the newest evaluation, if it scored the edits that are active now."""
    last_change = project.ledger.last_change()
    current = [row for row in project.ledger.evaluations() if row["last_change"] == last_change]
    if not current:
        return [], []
    newest = current[-1]
    confusions = newest["metrics"]["curves"].get("confusions", [])
    misrouted = [(row["edit"], row["of"], row["prompts"]) for row in confusions]
    samples = (project.ledger.evaluation(newest["id"]) or {"samples": []})["samples"]
    rephrases = [sample for sample in samples if sample["role"] == "generality"]
    reached = {sample["edit"] for sample in rephrases if sample["routed_edit"] == sample["expected_edit"]}
    active = set(project.ledger.active_experts())
    return misrouted, sorted({sample["edit"] for sample in rephrases} & active - reached)
