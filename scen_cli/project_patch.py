"""`ProjectPatch`: what a project's edits in force put on its base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from scen_cli.errors import DamageFound, UsageError
from scen_cli.model.experts import Experts
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.patch import Patch
from scen_cli.model.routing import BASE, Routing, Whitening, ready
from scen_cli.model.second_look import SecondLook
from scen_cli.model.template import Template
from scen_cli.project.project import Project
from scen_cli.project.store import LowRankArrays

CACHE_BYTES = 4 << 30  # full experts kept in memory while a patch is in use


class ProjectPatch(Patch):
    """A patch whose rows are a project's experts, each called by the id of its (first) edit."""

    def __init__(
        self,
        project: Project,
        edited: EditedLayer,
        routing: Routing,
        whitening: Whitening | None,
        looks: Template | None,
    ) -> None:
        """`looks`: how prompts are written, if edits are to take a second look at them."""
        self.last_change = project.ledger.last_change()  # before anything is read: what comes later is seen later
        merged, expert_of = project.merged(), project.ledger.experts_in_force()
        self.edits = merged.experts
        self.longest_answer: int | None = None  # in tokens, once it has been asked for
        self.expert_of = expert_of  # of each edit in force
        of_expert = {expert: row for row, expert in enumerate(merged.experts)}
        self._row_of = {edit: of_expert[expert] for edit, expert in expert_of.items()}
        experts = StoredExperts(project, merged.experts, edited)
        self.full_at_once = experts.at_once if (experts.ranks == 0).any() else None  # None: there are none
        device = edited.projection.weight.device
        self.forms = _forms(project, expert_of, merged.experts, looks) if looks else [[] for _ in merged.experts]
        bank = SimpleNamespace(
            neurons=ready(torch.from_numpy(merged.neurons).to(device), routing.cosine),
            biases=torch.from_numpy(merged.biases).to(device),
            whitening=whitening,
            second_look=SecondLook(self.forms) if any(self.forms) else None,
            experts=experts,
        )
        super().__init__(edited.projection, edited.down_proj, bank, routing)

    @property
    def theta(self) -> float:
        return self.routing.theta

    def rows_of(self, edits: Sequence[int | None]) -> Tensor:
        """The choice for these edits. Raises `UsageError` for one that is not in force."""
        gone = [edit for edit in edits if edit is not None and edit not in self._row_of]
        if gone:
            raise UsageError(f"edit {gone[0]} is not in force")
        return torch.tensor([BASE if edit is None else self._row_of[edit] for edit in edits])

    def edits_of(self, choice: Tensor) -> list[int | None]:
        return [None if row == BASE else self.edits[row] for row in choice.tolist()]


class StoredExperts(Experts):
    """The experts of a project. A low-rank one is read into its place in the stack when it is first called, and stays;
    of full ones the last few are kept."""

    def __init__(self, project: Project, experts: Sequence[int], edited: EditedLayer) -> None:
        rank_of, device = project.ledger.ranks_in_force(), edited.projection.weight.device
        ranks = torch.tensor([rank_of[expert] for expert in experts], dtype=torch.long)
        d, h = edited.projection_shape
        rows = int(ranks.sum())
        with torch.inference_mode(False):  # whoever asks first, others may be read by anybody later
            a, b = (torch.empty(rows, width, dtype=torch.float16, device=device) for width in (h, d))
        self.at_once = max(1, CACHE_BYTES // (d * h * 4))
        self._experts, self._there = experts, [False] * len(experts)
        self._read = lambda row: project.expert(experts[row])  # a copied model copies its hooks, but not what they call
        super().__init__(
            a, b, ranks, lru_cache(self.at_once)(lambda row: _full(project.expert(experts[row]), edited).to(device))
        )

    def fetch(self, choice: Tensor) -> None:
        for row in set(choice.tolist()) - {BASE}:
            if self.ranks[row] and not self._there[row]:
                stored = self._read(row)
                if isinstance(stored, np.ndarray) or stored.rank != self.ranks[row]:
                    raise DamageFound(
                        f"the ledger and the file of expert {self._experts[row]} tell different ranks",
                        hint=f"restore `scen.db` from a copy, or `scen revert {self._experts[row]}`",
                    )
                place = slice(int(self.starts[row]), int(self.starts[row] + self.ranks[row]))
                with torch.inference_mode(False), torch.no_grad():
                    self.a[place], self.b[place] = torch.from_numpy(stored.lora_A), torch.from_numpy(stored.lora_B).T
                self._there[row] = True


def _full(stored: np.ndarray | LowRankArrays, edited: EditedLayer) -> Tensor:
    """A full expert. If the project was compressed while this patch was in use, the matrix of what took its place."""
    if isinstance(stored, np.ndarray):
        return torch.from_numpy(stored)
    a, b = (torch.from_numpy(one).float() for one in (stored.lora_A, stored.lora_B))
    return edited.base_weight().cpu() + b @ a


def _forms(
    project: Project, expert_of: dict[int, int], experts: Sequence[int], looks: Template
) -> list[list[tuple[int, ...]]]:
    """For each expert, how the subject of its edit is written in tokens. One that edits share goes without."""
    served: dict[int, list[int]] = {expert: [] for expert in experts}
    for edit, expert in expert_of.items():
        served[expert].append(edit)
    known = project.ledger.subject_forms_in_force()

    def forms_of(edit_id: int) -> list[tuple[int, ...]]:
        if (forms := known[edit_id]) is not None:
            return [tuple(form) for form in forms]
        edit = project.find(edit_id)  # made before these were kept
        return looks.subject_forms(edit.subject, (edit.prompt, *edit.learned))

    return [forms_of(mates[0]) if len(mates) == 1 else [] for mates in served.values()]
