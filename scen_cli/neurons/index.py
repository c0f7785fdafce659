"""`Index`: the active neurons of a project (W_merge, equation 9), their keys, and the threshold that follows from them.

`admission.admit` fits the neuron of a new edit against this index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from scen_cli.data.records import EditRecord
from scen_cli.data.words import plain
from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.model.routing import normalize_neurons, prepare_keys, unbiased_activations
from scen_cli.model.subject_filter import BLOCKED
from scen_cli.neurons.build_guard import whitening_in
from scen_cli.neurons.calibration import calibrate
from scen_cli.neurons.growing_matrix import GrowingMatrix
from scen_cli.neurons.guard_split import GuardSplit, MatchKey, match_key
from scen_cli.neurons.neuron_fit import NeuronFit
from scen_cli.project.guard import Guard
from scen_cli.project.ledger import now
from scen_cli.project.ledger_rows import Threshold
from scen_cli.project.project import Project
from scen_cli.recipe import stored_recipe

ROUNDING = 1e-5  # float32 products of unit vectors differ by less than this
MARGIN = 0.01  # an edit's own prompt exceeds theta, and the activations of other neurons, by at least this


@dataclass(frozen=True)
class NeuronCandidate:
    """A fitted neuron that is not committed yet.

    Attributes:
        fit: The neuron, and its losses.
        bias: Subtracted from its activations.
        keys: The keys of its edits, (n, h), not prepared.
        on_keys: Its activations on these keys, (n,).
        on_guard: Its activations on the calibration prompts, (g,).
        refitted: Older neurons (h,) that were trained again because of this one, by expert.
        threshold: The new threshold; None if theta stays.
    """

    fit: NeuronFit
    bias: float
    keys: Tensor
    on_keys: Tensor
    on_guard: Tensor
    refitted: dict[int, Tensor] = field(default_factory=dict)
    threshold: Threshold | None = None


def same_subject(first: str | None, second: str | None) -> bool:
    """Whether two edits have the same subject, or both have none."""
    return plain(first or "") == plain(second or "")


class Index:
    """The active neurons of a project, the keys of all active edits, and the guard.

    Call `load` before any other method. Each active expert has one neuron; an expert goes by the id of its first edit.

    Attributes:
        experts: The expert of each row of W_merge, (t,).
        row_of: The row of each expert.
        subjects: The subject of each expert as `plain` has it, (t,); empty if it has none (`subject_of`).
        neurons: W_merge, normalised, (t, h).
        biases: The bias of each neuron, (t,).
        keys: The prepared keys of all active edits, (n, h).
        expert_of_key: The expert that each key must route to, (n,).
        own_activations: The activation of that expert's neuron on each key, (n, 1).
        on_guard: The activation of each neuron on each calibration prompt, (t, g).
        max_on_guard: The maximum over neurons, (g,).
        match_keys: The edits of each expert, by expert.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self.recipe = stored_recipe(project.settings)
        self.width = int(project.settings["ffn_width"])
        self._loaded_change: int | None = None  # the ledger's last change when `load` read it
        self._prepared_keys: dict[int, Tensor] = {}  # by expert; never outdated: a key does not change
        self._read_guard()

    def load(self) -> None:
        """Read the active edits, unless the ledger has not changed since the last call.

        Raises:
            DamageFound: The file of an active edit is damaged.
        """
        change = self.project.ledger.last_change()
        if change == self._loaded_change:
            return
        expert_of = self.project.ledger.active_experts()
        merged = self.project.w_merge()
        if merged.damaged:  # without its key, nobody can check that a new neuron leaves a damaged edit its prompt
            raise DamageFound(next(iter(merged.damaged.values())), hint=VERIFY_HINT)
        self.experts: list[int] = []
        self.row_of: dict[int, int] = {}
        self.subjects: list[str] = []
        self.biases: list[float] = []
        self.expert_of_key: list[int] = []
        self.neurons, self.keys = GrowingMatrix(self.width), GrowingMatrix(self.width)
        self.on_guard = GrowingMatrix(len(self.calibration_split))
        self.own_activations = GrowingMatrix(1)
        self.max_on_guard = torch.full((len(self.calibration_split),), -torch.inf)
        self.match_keys: dict[int, list[MatchKey]] = {expert: [] for expert in merged.experts}
        edits = {edit.id: edit for edit in self.project.ledger.edits("active")}
        for edit in edits.values():
            self.match_keys[expert_of[edit.id]].append(match_key(edit))
        neurons = normalize_neurons(torch.from_numpy(merged.neurons), self.recipe.cosine)
        on_guard = self.unbiased_activations(self.calibration_split.keys, neurons)
        self._load_keys(dict(zip(merged.experts, merged.keys_by_row(), strict=True)))
        for row, (expert, bias) in enumerate(zip(merged.experts, merged.biases.tolist(), strict=True)):
            on_prompts = self.calibration_split.max_per_prompt(on_guard[:, row], self.match_keys[expert]) - bias
            self._append(expert, neurons[row], bias, on_prompts)
        self.max_on_guard = self.compute_max_on_guard()
        self._loaded_change = change

    def add_committed(
        self, expert: int, candidate: NeuronCandidate, match_keys: Sequence[MatchKey], superseded: set[int]
    ) -> None:
        """Add a candidate after its commit. `superseded` are the experts that this commit made inactive."""
        self.append(expert, candidate, match_keys)
        # If rows disappear or change, the next `load` rebuilds everything.
        rebuild = superseded or candidate.refitted
        self._loaded_change = None if rebuild else self.project.ledger.last_change()

    def note_unrelated_commit(self) -> None:
        """Call after an own commit that changes no neuron: it avoids a rebuild at the next `load`."""
        if self._loaded_change is not None:
            self._loaded_change = self.project.ledger.last_change()

    def append(self, expert: int, candidate: NeuronCandidate, match_keys: Sequence[MatchKey]) -> None:
        """Add a candidate, in memory alone."""
        self.match_keys[expert] = list(match_keys)
        self._prepared_keys[expert] = self.prepare_keys(candidate.keys)
        self._append(expert, self.normalize_neuron(candidate.fit.neuron), candidate.bias, candidate.on_guard)

    def set_biases(self, biases: Mapping[int, tuple[float, float]]) -> None:
        """Replace biases, in memory alone. `biases`: (bias, activation) by expert; inactive experts are ignored."""
        for expert in biases.keys() & self.row_of:
            bias, row = biases[expert][0], self.row_of[expert]
            decrease = self.biases[row] - bias
            self.biases[row] = bias
            self.on_guard.all()[row] += decrease
            self.own_activations.all()[torch.tensor(self.expert_of_key) == expert] += decrease
        self.max_on_guard = self.compute_max_on_guard()

    def reload_guard(self) -> None:
        """Read the guard again, after it was replaced."""
        self._read_guard()
        self._loaded_change = None

    def calibrate(self, false_activation: float | None = None) -> Threshold | None:
        """The threshold for the active edits at this rate, or at the project's rate. None as in `threshold_for`."""
        return self.threshold_for(self.max_on_guard, self.highest_theta, false_activation)

    def threshold_for(
        self, max_on_guard: Tensor, highest: float, false_activation: float | None = None
    ) -> Threshold | None:
        """Calibrate theta.

        Args:
            max_on_guard: The largest activation of any neuron on each calibration prompt, (g,).
            highest: The upper bound of theta.
            false_activation: The rate; None for the project's own.

        Returns:
            The threshold; None if theta was set by hand or the project has no guard.
        """
        current = self.project.ledger.threshold()
        rate = false_activation or current.false_activation
        if rate is None and current.chosen_by == "init":
            rate = self.recipe.false_activation
        if rate is None or not len(max_on_guard):
            return None
        found = calibrate(max_on_guard, rate, self.recipe.theta, highest)
        return Threshold(found.theta, "calibration", now(), rate, found.expected, found.low, found.high, found.n)

    @property
    def highest_theta(self) -> float:
        """The upper bound of a calibrated theta: every active edit's own prompt still exceeds it. 1 for recipes that
        do not guarantee this."""
        if not len(self.own_activations) or not self.recipe.needs_guard:
            return 1.0
        return float(self.own_activations.all().min()) - MARGIN

    def activations_on_keys(self) -> Tensor:
        """Activations (n, t) of all active neurons on the keys of all active edits; `BLOCKED` where they do not
        compete."""
        activations = self.unbiased_activations(self.keys.all(), self.neurons.all()) - torch.tensor(self.biases)
        if not self.recipe.masks_subjects:
            return activations
        number_of = {name: number for number, name in enumerate(dict.fromkeys(self.subjects))}
        of_expert = torch.tensor([number_of[name] for name in self.subjects], dtype=torch.long)
        of_key = of_expert[[self.row_of[expert] for expert in self.expert_of_key]]
        return activations.masked_fill(of_key[:, None] != of_expert, BLOCKED)

    def keys_of_experts(self, experts: Tensor) -> Tensor:
        """Mask (n,) of the keys that belong to these experts, (t,)."""
        chosen = {expert for expert, is_chosen in zip(self.experts, experts.tolist(), strict=True) if is_chosen}
        return torch.tensor([expert in chosen for expert in self.expert_of_key], dtype=torch.bool)

    def activations_of_expert(self, expert: int) -> list[float]:
        """The activation of an expert's neuron on each of its own keys."""
        rows = zip(self.expert_of_key, self.own_activations.all()[:, 0].tolist(), strict=True)
        return [activation for owner, activation in rows if owner == expert]

    def subject_of(self, expert: int) -> str | None:
        """The subject of an active expert's edit; None if the subject filter does not look for it, or if edits share
        the expert."""
        match_keys = self.match_keys[expert]
        return match_keys[0][1] if len(match_keys) == 1 else None

    def competing(self, subject: str | None) -> Tensor:
        """Mask (t,) of the experts that may answer prompts about the same subject. Where the recipe masks subjects,
        these are the edits of that subject: others see another key."""
        if not self.recipe.masks_subjects:
            return torch.ones(len(self.experts), dtype=torch.bool)
        wanted = plain(subject or "")
        return torch.tensor([name == wanted for name in self.subjects], dtype=torch.bool)

    def max_activations(self, split: str) -> tuple[list[str], Tensor, list[int]]:
        """The prompts of a guard split, the largest activation of any active neuron on each (g,), and its expert."""
        guard = self._split(self.project.guard(), split)
        on_guard = self.unbiased_activations(guard.keys, self.neurons.all())
        columns = [
            guard.max_per_prompt(on_guard[:, row], self.match_keys[expert]) - self.biases[row]
            for row, expert in enumerate(self.experts)
        ]
        largest, rows = torch.stack(columns).max(dim=0)
        return guard.prompts, largest, [self.experts[row] for row in rows.tolist()]

    def compute_max_on_guard(self, active: Tensor | None = None) -> Tensor:
        """The largest activation of any neuron on each calibration prompt, (g,).

        Args:
            active: Mask (t,) of the neurons that count; None for all.
        """
        on_guard = self.on_guard.all()
        if active is not None:
            on_guard = on_guard.masked_fill(~active[:, None], -torch.inf)
        if not len(on_guard):
            return torch.full((len(self.calibration_split),), -torch.inf)
        largest = on_guard.amax(dim=0)
        # Float32 finds the neurons that may have the maximum; theta needs its exact value.
        near = (on_guard >= largest - ROUNDING) & (on_guard > BLOCKED)
        exact = largest.masked_fill(near.any(dim=0), -torch.inf)
        for row, prompt in near.nonzero().tolist():
            activations = self.exact_activation(self.calibration_split.keys_of(prompt), self.neurons.all()[row])
            exact[prompt] = max(exact[prompt], activations.max() - self.biases[row])
        return exact

    def same_topic(self, record: EditRecord, prompt: str, subject: str | None) -> bool:
        """Whether a record and an edit may have the same topic."""
        return self.calibration_split.topics.same_topic(record.prompt, record.subject, prompt, subject)

    def prepared_keys_of(self, expert: int) -> Tensor:
        """The prepared keys (n, h) of an active expert's edits."""
        return self._prepared_keys[expert]

    def prepare_keys(self, keys: Tensor) -> Tensor:
        """Keys (n, h) as neurons see them: whitened, normalised. In float64, so that the batch size changes no bit."""
        return prepare_keys(keys.double(), self.recipe.cosine, self.whitening).float()

    def normalize_neuron(self, neuron: Tensor) -> Tensor:
        """A stored neuron (h,) as it meets prepared keys."""
        return normalize_neurons(neuron[None], self.recipe.cosine)[0]

    def unbiased_activations(self, keys: Tensor, neurons: Tensor) -> Tensor:
        """Activations (n, t) of neurons (t, h) on prepared keys (n, h), without biases."""
        return unbiased_activations(keys, neurons, self.recipe.cosine)

    def exact_activations(self, keys: Tensor, neurons: Tensor) -> Tensor:
        """As `unbiased_activations`, computed in float64 and then rounded to float32.

        Use it for all values that theta and biases follow from: the last digits of a float32 product depend on the
        number of rows.
        """
        return unbiased_activations(keys.double(), neurons.double(), self.recipe.cosine).float()

    def exact_activation(self, keys: Tensor, neuron: Tensor) -> Tensor:
        """`exact_activations` (n,) of one neuron (h,)."""
        return self.exact_activations(keys, neuron[None])[:, 0]

    def _read_guard(self) -> None:
        guard = self.project.guard()
        self.whitening = whitening_in(guard) if guard and self.recipe.index == "closed-form" else None
        self.fit_split, self.calibration_split = self._split(guard, "fit"), self._split(guard, "calibration")

    def _split(self, guard: Guard | None, name: str) -> GuardSplit:
        return GuardSplit(guard, name, self.width, self.recipe, self.prepare_keys)

    def _load_keys(self, keys: Mapping[int, np.ndarray]) -> None:
        """Prepare the keys of experts, except those already in memory."""
        new = {expert: torch.from_numpy(rows) for expert, rows in keys.items() if expert not in self._prepared_keys}
        if new:
            prepared = self.prepare_keys(torch.cat(list(new.values()))).split([len(rows) for rows in new.values()])
            self._prepared_keys.update(zip(new, prepared, strict=True))

    def _append(self, expert: int, neuron: Tensor, bias: float, on_guard: Tensor) -> None:
        self.row_of[expert] = len(self.experts)
        self.experts.append(expert)
        self.subjects.append(plain(self.subject_of(expert) or ""))
        self.biases.append(bias)
        self.neurons.append(neuron)
        self.on_guard.append(on_guard)
        self.max_on_guard = torch.maximum(self.max_on_guard, on_guard)
        keys = self._prepared_keys[expert]
        for key, activation in zip(keys, self.exact_activation(keys, neuron) - bias, strict=True):
            self.keys.append(key)
            self.own_activations.append(activation)
            self.expert_of_key.append(expert)
