"""`ProjectPatch`: what a project's edits in force put on its base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor

from scen_cli.errors import UsageError
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.patch import Patch
from scen_cli.model.routing import BASE, Routing, Whitening
from scen_cli.model.second_look import SecondLook
from scen_cli.model.template import Template
from scen_cli.project.ledger import Edit
from scen_cli.project.project import Project

CACHE_BYTES = 4 << 30  # experts kept in memory while a patch is in use


class ProjectPatch(Patch):
    """A patch whose rows are a project's experts, each called by the id of its (first) edit. They are read
    as they are asked for."""

    def __init__(
        self,
        project: Project,
        edited: EditedLayer,
        routing: Routing,
        whitening: Whitening | None,
        looks: Template | None,
    ) -> None:
        """`looks`: how prompts are written, if edits are to take a second look at them."""
        merged, expert_of = project.merged(), project.ledger.experts_in_force()
        device = edited.projection.weight.device
        self.edits = merged.experts
        self.longest_answer: int | None = None  # in tokens, once it has been asked for
        self.expert_of = expert_of  # of each edit in force
        of_expert = {expert: row for row, expert in enumerate(merged.experts)}
        self._row_of = {edit: of_expert[expert] for edit, expert in expert_of.items()}
        self.experts_at_once = max(1, CACHE_BYTES // (edited.projection.weight.numel() * 4))
        expert = lru_cache(self.experts_at_once)(
            lambda row: torch.from_numpy(project.expert(merged.experts[row])).to(device)
        )
        neurons, biases = (torch.from_numpy(array).to(device) for array in (merged.neurons, merged.biases))
        self.forms = _forms(project.ledger.edits("active") if looks else [], merged.experts, looks)
        bank = SimpleNamespace(
            neurons=neurons,
            biases=biases,
            whitening=whitening,
            second_look=SecondLook(self.forms) if any(self.forms) else None,
            expert=expert,
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


def _forms(edits: Sequence[Edit], experts: Sequence[int], looks: Template | None) -> list[list[tuple[int, ...]]]:
    """For each expert, how the subject of its edit is written in tokens. One that edits share goes without."""
    served: dict[int, list[Edit]] = {expert: [] for expert in experts}
    for edit in edits:
        served[edit.expert or edit.id].append(edit)
    return [
        looks.subject_forms(mates[0].subject, (mates[0].prompt, *mates[0].learned)) if looks and len(mates) == 1 else []
        for mates in served.values()
    ]
