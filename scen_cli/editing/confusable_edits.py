"""What may be confused in a project, from cached keys alone: no model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from scen_cli.neurons.index import Index
from scen_cli.project.project import Project

LITTLE = 0.05  # margin below which an edit is said to have little


@dataclass(frozen=True)
class Pair:
    """The neuron of `edit` on the prompt of `other`: how strong it is, and by how much the other's own is stronger."""

    edit: int
    other: int
    activation: float
    margin: float


@dataclass(frozen=True)
class Confusions:
    """`pairs`: nearest first. `without_margin`: (edit, margin) of edits that pass theta and every rival by less than
    `LITTLE` on their own prompt. `guard`: (prompt, edit, activation) of guard prompts that fire. From the newest
    evaluation: `misrouted`: (edit, whose prompts, how many); `never_routed`: edits whose rephrases all went elsewhere.
    An expert that edits share goes by the first of them."""

    theta: float
    pairs: list[Pair]
    without_margin: list[tuple[int, float]]
    guard: list[tuple[str, int, float]]
    misrouted: list[tuple[int, int | None, int]]
    never_routed: list[int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_confusions(project: Project, top: int) -> Confusions:
    """The `top` of each kind."""
    index, theta = Index(project), project.ledger.theta()
    index.load()
    misrouted, never_routed = _last_evaluation(project)
    if not index.experts:
        return Confusions(theta, [], [], [], misrouted[:top], never_routed[:top])
    on_keys = index.on_all_keys()  # (keys, experts)
    row_of = {expert: row for row, expert in enumerate(index.experts)}
    mine = torch.tensor([row_of[expert] for expert in index.key_of])
    own = on_keys[torch.arange(len(mine)), mine]
    rivals = on_keys.scatter(1, mine[:, None], -torch.inf)
    strongest, rival = rivals.max(dim=1)
    pairs = [
        Pair(index.experts[int(rival[key])], index.key_of[key], float(strongest[key]), float(own[key] - strongest[key]))
        for key in strongest.argsort(descending=True)[:top].tolist()
        if strongest[key] > -torch.inf
    ]
    margin = own - strongest.clamp(min=theta)
    weak = [(index.key_of[key], float(margin[key])) for key in margin.argsort().tolist() if margin[key] < LITTLE]
    guard = []
    for split in ("calibration", "report"):
        prompts, activations, experts = index.strongest_on(split)
        for place in (activations > theta).nonzero().flatten().tolist():
            guard.append((prompts[place], experts[place], float(activations[place])))
    guard.sort(key=lambda one: -one[2])
    return Confusions(theta, pairs, weak[:top], guard[:top], misrouted[:top], never_routed[:top])


def _last_evaluation(project: Project) -> tuple[list[tuple[int, int | None, int]], list[int]]:
    """From the newest evaluation of the active edits, if there is one: whose prompts were taken, and by whom; and
    which edits none of their rephrases called."""
    known = [e for e in project.ledger.evaluations() if e["last_change"] == project.ledger.last_change()]
    if not known:
        return [], []
    newest = known[-1]
    misrouted = [(c["edit"], c["of"], c["prompts"]) for c in newest["metrics"]["curves"].get("confusions", [])]
    samples = (project.ledger.evaluation(newest["id"]) or {"samples": []})["samples"]
    rephrases = [sample for sample in samples if sample["role"] == "generality"]
    reached = {sample["edit"] for sample in rephrases if sample["fired"] == sample["owner"]}
    active = set(project.ledger.active_experts())
    return misrouted, sorted({sample["edit"] for sample in rephrases} & active - reached)
