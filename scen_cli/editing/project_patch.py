"""`ProjectPatch`: the active edits of a project as a patch on its base."""

from __future__ import annotations

import math
import time
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
from scen_cli.project.edit_files import LowRankArrays
from scen_cli.project.project import Project
from scen_cli.recipe import HIGHEST_RANK

CACHE_BYTES = 4 << 30  # full experts kept in memory while a patch is in use
RETRY_SECONDS = 5.0  # until a damaged file is read again: somebody may have repaired it

Warn = Callable[[str], None]


class ProjectPatch(Patch):
    """A patch whose rows are the experts of a project's active edits.

    Args:
        project: The project.
        edited: The edited layer of the base.
        routing: How prompts are routed.
        whitening: Whitening of the keys, if the recipe whitens.
        pieces: The text of each token id, to find subjects in prompts; None: the recipe has no subject filter.
        warn: Called with a message for each active edit whose file is damaged. A plain function: a copied model copies
            its hooks, but not what they call.

    Attributes:
        edits: The edit of each row; edits that share an expert are named by the first of them.
        damaged: Active edits without a row because their files are damaged, with what is wrong.
        expert_of: The expert of each active edit, by edit.
        full_at_once: How many full experts fit in memory; None if there are no full experts.
        subject_names: For each row, the names of its subject.
    """

    def __init__(
        self,
        project: Project,
        edited: EditedLayer,
        routing: Routing,
        whitening: Whitening | None,
        pieces: Sequence[bytes] | None,
        warn: Warn,
    ) -> None:
        with project.ledger.reading():  # everything from one moment; the next patch sees what is committed later
            self.last_change = project.ledger.last_change()
            merged, expert_of = project.w_merge(), project.ledger.active_experts()
            rank_of = project.ledger.active_ranks()
            names = {} if pieces is None else project.ledger.active_subject_names()
        self.edits, self.damaged, self.expert_of = merged.experts, merged.damaged, expert_of
        self.longest_answer: int | None = None  # in tokens; computed at the first use
        self._next_look = time.monotonic() + RETRY_SECONDS
        # A closure over `project`: a copied model copies its hooks, but not what they call.
        self._is_repaired = lambda expert: _can_read(project, expert)
        row_of_expert = {expert: row for row, expert in enumerate(merged.experts)}
        self._row_of = {edit: row_of_expert[expert] for edit, expert in expert_of.items() if expert in row_of_expert}
        for expert, error in merged.damaged.items():
            warn(f"edit {expert} is damaged and quarantined, no prompt is routed to it: {error}")
        experts = StoredExpertStack(project, merged.experts, rank_of, edited, warn)
        self.full_at_once = experts.at_once if (experts.ranks == 0).any() else None
        self.subject_names = _subject_names(merged.experts, expert_of, names)
        neurons = torch.from_numpy(merged.neurons).to(edited.device)
        bank = SimpleNamespace(
            neurons=normalize_neurons(neurons, routing.cosine),
            biases=torch.from_numpy(merged.biases).to(edited.device),
            whitening=whitening,
            subject_filter=SubjectFilter(self.subject_names, pieces or ()) if any(self.subject_names) else None,
            experts=experts,
        )
        super().__init__(edited.projection, edited.down_proj, bank, routing)

    @property
    def theta(self) -> float:
        return self.routing.theta

    def is_outdated(self) -> bool:
        """Whether an edit of `damaged` has been repaired. Looks every `RETRY_SECONDS`, otherwise it says no."""
        if not self.damaged or time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + RETRY_SECONDS
        return any(map(self._is_repaired, self.damaged))

    def rows_of(self, edits: Sequence[int | None]) -> Tensor:
        """The choice (rows of W_merge, or `BASE`) for these edits.

        Raises:
            DamageFound: An edit is active, but its file is damaged.
            UsageError: An edit is not active.
        """
        for edit in edits:
            if edit is not None and edit not in self._row_of:
                if edit in self.expert_of:
                    raise DamageFound(f"edit {edit} is active, but its file is damaged", VERIFY_HINT)
                raise UsageError(f"edit {edit} is not active")
        return torch.tensor([BASE if edit is None else self._row_of[edit] for edit in edits])

    def edits_of(self, choice: Tensor) -> list[int | None]:
        """The edits of a choice; None for the base."""
        return [None if row == BASE else self.edits[row] for row in choice.tolist()]


def _can_read(project: Project, expert: int) -> bool:
    """Whether an expert's neuron can be read from its file."""
    try:
        project.files.index(project.find(expert))
    except (DamageFound, UsageError):  # `UsageError`: there is no such edit
        return False
    return True


def _subject_names(
    experts: Sequence[int], expert_of: Mapping[int, int], names: Mapping[int, list[str]]
) -> list[list[str]]:
    """For each expert, the names of its edit's subject; none if edits share the expert."""
    edits_of: dict[int, list[int]] = {expert: [] for expert in experts}
    for edit, expert in expert_of.items():
        if edit in names and expert in edits_of:
            edits_of[expert].append(edit)
    return [names[edits[0]] if len(edits) == 1 else [] for edits in edits_of.values()]


class StoredExpertStack(ExpertStack):
    """The experts of a project, read from their files when they are first needed.

    Low-rank experts stay in memory; of full ones the last few do. An expert whose file is damaged is quarantined: the
    base answers its prompts, until the file is repaired.
    """

    def __init__(
        self, project: Project, experts: Sequence[int], rank_of: Mapping[int, int], edited: EditedLayer, warn: Warn
    ) -> None:
        device = edited.device
        d, h = edited.projection_shape
        recorded = torch.tensor([min(rank_of[expert], HIGHEST_RANK + 1) for expert in experts], dtype=torch.long)
        valid = (recorded >= 0) & (recorded <= HIGHEST_RANK)
        ranks = torch.where(valid, recorded, 0)
        with torch.inference_mode(False):  # the first reader may be in inference mode, later ones may not
            a, b = (torch.empty(int(ranks.sum()), width, dtype=torch.float16, device=device) for width in (h, d))
        self.at_once = max(1, CACHE_BYTES // (d * h * 4))
        self._experts, self._loaded, self._shape, self._warn = experts, [False] * len(experts), (d, h), warn
        self._quarantined: dict[int, float] = {}  # rows, and when each file is read again
        for row in (~valid).nonzero().flatten().tolist():
            self._quarantine(row, "the ledger records an impossible rank", math.inf)
        # Closures over `project`, as above.
        self._read = lambda row: project.expert(experts[row])
        full = lru_cache(self.at_once)(lambda row: _full_expert(project.expert(experts[row]), edited).to(device))
        super().__init__(a, b, ranks, full)

    def fetch(self, choice: Tensor) -> Tensor:
        for row in set(choice.tolist()) - {BASE}:
            if not self._can_load(row):
                choice = torch.where(choice == row, BASE, choice)
        return choice

    def _can_load(self, row: int) -> bool:
        if time.monotonic() < self._quarantined.get(row, 0):
            return False
        try:
            self._load(row)
        except DamageFound as error:
            self._quarantine(row, str(error), time.monotonic() + RETRY_SECONDS)
            return False
        self._quarantined.pop(row, None)
        return True

    def _quarantine(self, row: int, why: str, until: float) -> None:
        if row not in self._quarantined:
            self._warn(f"edit {self._experts[row]} is damaged and quarantined, the base answers for it: {why}")
        self._quarantined[row] = until

    def _load(self, row: int) -> None:
        """Load an expert. Raises `DamageFound` if its file is not what the ledger records."""
        rank = int(self.ranks[row])
        if not rank:
            self.full(row)
        elif not self._loaded[row]:
            stored, (d, h) = self._read(row), self._shape
            if isinstance(stored, np.ndarray) or (stored.lora_A.shape, stored.lora_B.shape) != ((rank, h), (d, rank)):
                raise DamageFound("its file does not have the rank that the ledger records, or the base's width")
            rows = slice(int(self.starts[row]), int(self.starts[row]) + rank)
            with torch.inference_mode(False), torch.no_grad():
                self.a[rows], self.b[rows] = torch.from_numpy(stored.lora_A), torch.from_numpy(stored.lora_B).T
            self._loaded[row] = True


def _full_expert(stored: np.ndarray | LowRankArrays, edited: EditedLayer) -> Tensor:
    """A full expert (d, h). If the project was compressed while the patch was in use: the base's weight plus B A."""
    if isinstance(stored, np.ndarray):
        if stored.shape != edited.projection_shape:
            raise DamageFound(f"its file holds {list(stored.shape)}, the base {list(edited.projection_shape)}")
        return torch.from_numpy(stored)
    a, b = (torch.from_numpy(factor).float() for factor in (stored.lora_A, stored.lora_B))
    return edited.base_weight().cpu() + b @ a
