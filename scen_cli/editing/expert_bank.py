"""`ProjectPatch`: what a project's active edits put on its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError
from scen_cli.model.expert_stack import ExpertStack
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.patch import Patch
from scen_cli.model.routing import BASE, Routing, Whitening, normalize_neurons
from scen_cli.model.subject_filter import SubjectFilter
from scen_cli.model.template import Template
from scen_cli.project.project import Project
from scen_cli.project.tensor_files import LowRankArrays
from scen_cli.recipe import HIGHEST_RANK

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
        warn: Callable[[str], None],
    ) -> None:
        """`looks`: how prompts are written, if edits are to take a second look at them; `warn`, a plain function (a
        copied model copies its hooks, but not what these call), is told of each edit that is active but damaged."""
        with project.ledger.reading():  # all of one moment: what comes later is seen later
            self.last_change = project.ledger.last_change()
            merged, expert_of = project.w_merge(), project.ledger.active_experts()
            rank_of = project.ledger.active_ranks()
        self.edits, self.damaged = merged.experts, merged.damaged
        self.longest_answer: int | None = None  # in tokens, once it has been asked for
        self.expert_of = expert_of  # of each active edit
        of_expert = {expert: row for row, expert in enumerate(merged.experts)}
        self._row_of = {edit: of_expert[expert] for edit, expert in expert_of.items() if expert in of_expert}
        for expert, error in merged.damaged.items():
            warn(f"edit {expert} is damaged and quarantined, it calls nothing: {error}")
        experts = StoredExpertStack(project, merged.experts, rank_of, edited, warn)
        self.full_at_once = experts.at_once if (experts.ranks == 0).any() else None  # None: there are none
        device = edited.device
        whole = {edit: expert for edit, expert in expert_of.items() if expert in of_expert}
        self.forms = _forms(project, whole, merged.experts, looks) if looks else [[] for _ in merged.experts]
        bank = SimpleNamespace(
            neurons=normalize_neurons(torch.from_numpy(merged.neurons).to(device), routing.cosine),
            biases=torch.from_numpy(merged.biases).to(device),
            whitening=whitening,
            subject_filter=SubjectFilter(self.forms) if any(self.forms) else None,
            experts=experts,
        )
        super().__init__(edited.projection, edited.down_proj, bank, routing)

    @property
    def theta(self) -> float:
        return self.routing.theta

    def rows_of(self, edits: Sequence[int | None]) -> Tensor:
        """The choice for these edits. Raises `UsageError` for one that is not active."""
        gone = [edit for edit in edits if edit is not None and edit not in self._row_of]
        if gone and gone[0] in self.expert_of:
            raise DamageFound(f"edit {gone[0]} is active, but its file is damaged", VERIFY_HINT)
        if gone:
            raise UsageError(f"edit {gone[0]} is not active")
        return torch.tensor([BASE if edit is None else self._row_of[edit] for edit in edits])

    def edits_of(self, choice: Tensor) -> list[int | None]:
        return [None if row == BASE else self.edits[row] for row in choice.tolist()]


class StoredExpertStack(ExpertStack):
    """The experts of a project. A low-rank one is read into its place in the stack when it is first called, and stays;
    of full ones the last few are kept. One whose file is damaged is quarantined: its prompts are the base's."""

    def __init__(
        self,
        project: Project,
        experts: Sequence[int],
        rank_of: Mapping[int, int],
        edited: EditedLayer,
        warn: Callable[[str], None],
    ) -> None:
        device = edited.device
        d, h = edited.projection_shape
        told = torch.tensor([min(rank_of[expert], HIGHEST_RANK + 1) for expert in experts], dtype=torch.long)
        can_be = (told >= 0) & (told <= HIGHEST_RANK)
        ranks = torch.where(can_be, told, 0)
        rows = int(ranks.sum())
        with torch.inference_mode(False):  # whoever asks first, others may be read by anybody later
            a, b = (torch.empty(rows, width, dtype=torch.float16, device=device) for width in (h, d))
        self.at_once = max(1, CACHE_BYTES // (d * h * 4))
        self._experts, self._there, self._shape, self._warn = experts, [False] * len(experts), (d, h), warn
        self.quarantined: set[int] = set()  # rows
        for row in (~can_be).nonzero().flatten().tolist():
            self._quarantine(row, "the ledger tells a rank that cannot be")
        self._read = lambda row: project.expert(experts[row])  # a copied model copies its hooks, but not what they call
        super().__init__(
            a, b, ranks, lru_cache(self.at_once)(lambda row: _full(project.expert(experts[row]), edited).to(device))
        )

    def fetch(self, choice: Tensor) -> Tensor:
        for row in set(choice.tolist()) - {BASE}:
            if row not in self.quarantined:
                try:
                    self._have(row)
                except DamageFound as error:
                    self._quarantine(row, str(error))
            if row in self.quarantined:
                choice = torch.where(choice == row, BASE, choice)
        return choice

    def _quarantine(self, row: int, why: str) -> None:
        self.quarantined.add(row)
        self._warn(f"edit {self._experts[row]} is damaged and quarantined, the base answers for it: {why}")

    def _have(self, row: int) -> None:
        """Have an expert ready to be called. Raises `DamageFound` if it is not what the ledger says."""
        rank = int(self.ranks[row])
        if not rank:
            self.full(row)
        elif not self._there[row]:
            stored, (d, h) = self._read(row), self._shape
            if isinstance(stored, np.ndarray) or (stored.lora_A.shape, stored.lora_B.shape) != ((rank, h), (d, rank)):
                raise DamageFound("its file and the ledger tell different ranks, or the base has another width")
            place = slice(int(self.starts[row]), int(self.starts[row]) + rank)
            with torch.inference_mode(False), torch.no_grad():
                self.a[place], self.b[place] = torch.from_numpy(stored.lora_A), torch.from_numpy(stored.lora_B).T
            self._there[row] = True


def _full(stored: np.ndarray | LowRankArrays, edited: EditedLayer) -> Tensor:
    """A full expert. If the project was compressed while this patch was in use, the matrix of what took its place."""
    if isinstance(stored, np.ndarray):
        if stored.shape != edited.projection_shape:
            raise DamageFound(f"its file holds {list(stored.shape)}, the base {list(edited.projection_shape)}")
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
    known = project.ledger.active_subject_forms()

    return [[tuple(form) for form in known[mates[0]]] if len(mates) == 1 else [] for mates in served.values()]
