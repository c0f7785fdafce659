"""`Index`: the active neurons, and how one more is let in: fitted, calibrated, and in nobody's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scen_cli.data.records import EditRecord
from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError
from scen_cli.model.routing import normalize_neurons, prepare, score
from scen_cli.model.subject_filter import BLOCKED
from scen_cli.neurons.build_guard import whitening_in
from scen_cli.neurons.calibration import calibrate
from scen_cli.neurons.closed_form import bias_of, neuron_of
from scen_cli.neurons.growing_matrix import GrowingMatrix
from scen_cli.neurons.guard_split import GuardSplit, MatchKey, match_key
from scen_cli.neurons.joint import fit_joint, refit_colliding
from scen_cli.neurons.paper_losses import NeuronFit, hard_negatives, train_neuron
from scen_cli.project.guard import Guard
from scen_cli.project.ledger import now
from scen_cli.project.ledger_rows import Edit, Threshold
from scen_cli.project.project import Project
from scen_cli.recipe import stored_recipe

NOTHING = torch.tensor(-torch.inf)  # the activation of no neuron at all
ROUNDING = 1e-5  # more than float32 products of unit vectors differ by
MARGIN = 0.01  # by which an edit's own prompt passes theta, and other edits stay behind it


@dataclass(frozen=True)
class NeuronCandidate:
    """What one more expert brings: its neuron and bias, the neuron's activations on its `keys` (n, h) and on
    the calibration prompts (g,); neurons of others, `refitted`, by expert; a new threshold, if it takes one."""

    fit: NeuronFit
    bias: float
    keys: Tensor
    on_keys: Tensor
    on_guard: Tensor
    refitted: dict[int, Tensor] = field(default_factory=dict)
    threshold: Threshold | None = None


class Index:
    """W_merge of a project with what it was made from: the keys of all active edits, and the guard."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.recipe = stored_recipe(project.settings)
        self.width = int(project.settings["ffn_width"])
        self._change: int | None = None  # the ledger's newest, when all was read
        self._keys_of: dict[int, Tensor] = {}  # of every expert met, prepared: a key never changes
        self._read_guard()

    def load(self) -> None:
        """Meet the ledger: nothing to do unless somebody else has changed it."""
        change = self.project.ledger.last_change()
        if change == self._change:
            return
        expert_of = self.project.ledger.active_experts()
        merged = self.project.w_merge()
        if merged.damaged:  # what is let in must leave every edit its prompt: of these it cannot be known
            raise DamageFound(next(iter(merged.damaged.values())), hint=VERIFY_HINT)
        self.experts: list[int] = []
        self.biases: list[float] = []
        self.key_of: list[int] = []  # the expert that each key is to call
        self.neurons, self.keys, self.on_guard = (
            GrowingMatrix(self.width),
            GrowingMatrix(self.width),
            GrowingMatrix(len(self._calibration)),
        )
        self.own = GrowingMatrix(1)  # what each key gives the neuron that it is to call
        self.strongest = NOTHING.expand(len(self._calibration)).clone()  # of all neurons, on each calibration prompt
        self.match_keys: dict[int, MatchKey] = {expert: [] for expert in merged.experts}
        edits = {edit.id: edit for edit in self.project.ledger.edits("active")}
        for edit in edits.values():
            self.match_keys[expert_of[edit.id]] = [*self.match_keys[expert_of[edit.id]], match_key(edit)]
        neurons = normalize_neurons(torch.from_numpy(merged.neurons), self.recipe.cosine)
        scores = self.score(self._calibration.keys, neurons)
        self._meet([edits.get(expert) or self.project.find(expert) for expert in merged.experts])
        for row, (expert, bias) in enumerate(zip(merged.experts, merged.biases.tolist(), strict=True)):
            on_guard = self._calibration.by_prompt(scores[:, row], self.match_keys[expert]) - bias
            self._append(expert, neurons[row], bias, self._keys_of[expert], on_guard)
        self.strongest = self._strongest()
        self._change = change

    def admit(
        self, keys: Tensor, learned: Tensor, topics: MatchKey, seed: int, leaving: set[int]
    ) -> NeuronCandidate | None:
        """Fit a neuron to keys (n, h) of edits that share an expert, and to those of `learned` rephrases (m, h);
        the experts of `leaving` count no more. None if it diverged.

        Where there is a guard, every edit calls itself afterwards: raises `UsageError` if one could not.
        """
        stay = torch.tensor([expert not in leaving for expert in self.experts], dtype=torch.bool)
        others, own, strongest = self.keys.all(), self.own.all()[:, 0], self.strongest
        if leaving:
            keys_stay = torch.tensor([expert not in leaving for expert in self.key_of], dtype=torch.bool)
            others, own = others[keys_stay], own[keys_stay]
            strongest = self._strongest(stay)
        fit = self._fit_neuron(keys, learned, others, seed)
        if not fit.neuron.isfinite().all():
            return None
        neuron = self.normalize_neuron(fit.neuron)
        refitted: dict[int, Tensor] = {}
        bias = 0.0
        if self.recipe.index == "closed-form":
            bias = self.bias_beside(neuron, others, own)
        elif self.recipe.index == "joint":
            refitted = self._refit_colliding(keys[0], neuron, stay)
        prepared = self.prepare(keys)
        on_keys = self.measure(prepared, neuron) - bias
        on_guard = self._on_guard(neuron, bias, topics)
        limit = 1.0
        if self.recipe.needs_guard:
            if self.recipe.index == "joint":
                own = self._own_after(neuron, prepared, leaving, refitted)
            else:
                self._check_it_calls_itself(prepared, on_keys, stay)
            limit = min(float(on_keys.min()), float(own.min()) if len(own) else 1.0) - MARGIN
        threshold = self.calibrated(torch.maximum(strongest, on_guard), limit)
        return NeuronCandidate(fit, bias, keys, on_keys, on_guard, refitted, threshold)

    def accept(self, expert: int, admitted: NeuronCandidate, topics: MatchKey, leaving: set[int]) -> None:
        """Take in what has been committed as this expert."""
        self.take(expert, admitted, topics)
        # Where rows go or change, the next load makes all anew.
        changed = leaving or admitted.refitted
        self._change = None if changed else self.project.ledger.last_change()

    def skip(self) -> None:
        """Take note that what has been committed by this very writer changes no neuron."""
        if self._change is not None:
            self._change = self.project.ledger.last_change()

    def take(self, expert: int, admitted: NeuronCandidate, topics: MatchKey) -> None:
        """Let one more expert in, whatever the ledger says."""
        self.match_keys[expert] = topics
        self._keys_of[expert] = self.prepare(admitted.keys)
        self._append(
            expert, self.normalize_neuron(admitted.fit.neuron), admitted.bias, self._keys_of[expert], admitted.on_guard
        )

    def forget_guard(self) -> None:
        """Read the guard anew: it has been replaced."""
        self._read_guard()
        self._change = None

    def strongest_on(self, split: str) -> tuple[list[str], Tensor, list[int]]:
        """The guard prompts of a split, the largest activation of any active neuron on each (g,), and the expert
        whose neuron that is."""
        guard = self._split(self.project.guard(), split)
        scores = self.score(guard.keys, self.neurons.all())
        columns = [
            guard.by_prompt(scores[:, row], self.match_keys[expert]) - self.biases[row]
            for row, expert in enumerate(self.experts)
        ]
        strongest, row = torch.stack(columns).max(dim=0)
        return guard.prompts, strongest, [self.experts[place] for place in row.tolist()]

    def set_biases(self, biases: Mapping[int, tuple[float, float]]) -> None:
        """Give active experts other biases, whatever the ledger says."""
        for expert, (bias, _activation) in biases.items():
            if expert not in self.experts:  # superseded
                continue
            row = self.experts.index(expert)
            less = self.biases[row] - bias
            self.biases[row] = bias
            self.on_guard.all()[row] += less
            self.own.all()[torch.tensor(self.key_of) == expert] += less
        self.strongest = self._strongest()

    def recalibrated(self) -> Threshold | None:
        """The threshold that the active edits call for. None if theta is set by hand, or there is no guard."""
        return self.calibrated(self.strongest, self.limit)

    def on_all_keys(self) -> Tensor:
        """Activations (n, t) of all active neurons on all active keys."""
        return self.score(self.keys.all(), self.neurons.all()) - torch.tensor(self.biases)

    def calibrated(self, strongest: Tensor, limit: float, false_activation: float | None = None) -> Threshold | None:
        """The threshold for a rate of false activations (the one active, or another); not above `limit`, where
        an edit would no longer call itself. None if theta is set by hand, or there is no guard."""
        now_in_force = self.project.ledger.threshold()
        rate = false_activation or now_in_force.false_activation
        if rate is None and now_in_force.chosen_by == "init":
            rate = self.recipe.false_activation
        if rate is None or not len(strongest):
            return None
        found = calibrate(strongest, rate, self.recipe.theta, limit)
        return Threshold(found.theta, "calibration", now(), rate, found.expected, found.low, found.high, found.n)

    def same_topic(self, record: EditRecord, prompt: str, subject: str | None) -> bool:
        """Whether a record and an edit may be about the same."""
        return self._calibration.topics.same(record.prompt, record.subject, prompt, subject)

    @property
    def limit(self) -> float:
        """The highest theta that calibration may set: every active edit still calls itself, where the recipe
        sees to that."""
        return float(self.own.all().min()) - MARGIN if len(self.own) and self.recipe.needs_guard else 1.0

    def _read_guard(self) -> None:
        guard = self.project.guard()
        self._whitening = whitening_in(guard) if guard and self.recipe.index == "closed-form" else None
        self._fit, self._calibration = self._split(guard, "fit"), self._split(guard, "calibration")

    def _split(self, guard: Guard | None, name: str) -> GuardSplit:
        return GuardSplit(guard, name, self.width, self.recipe.subject_filter, self.prepare)

    def _fit_neuron(self, keys: Tensor, learned: Tensor, others: Tensor, seed: int) -> NeuronFit:
        kind = self.recipe.index
        if kind == "paper":
            return train_neuron(keys, hard_negatives(keys, others), self.recipe, seed)
        if kind == "joint":
            own = torch.cat([keys, learned])
            return fit_joint(own, hard_negatives(own, others), self._fit.keys, self.recipe, seed)
        return NeuronFit(neuron_of(keys, learned, self._whitening), [])

    def bias_beside(self, neuron: Tensor, others: Tensor, own: Tensor) -> float:
        """The bias of a closed-form neuron: by the guard, and so that keys (n, h) of others, which give their neurons
        `own` (n,), stay theirs."""
        bias = bias_of(self.measure(self._fit.keys, neuron))
        if not len(others):
            return bias
        over = self.score(others, neuron[None])[:, 0] - bias - own
        most = over >= over.max() - ROUNDING
        return bias + max(0.0, float((self.measure(others[most], neuron) - bias - own[most]).max()) + MARGIN)

    def _refit_colliding(self, key: Tensor, neuron: Tensor, stay: Tensor) -> dict[int, Tensor]:
        """Neurons that take the new key, fitted again."""
        rows = stay.nonzero().flatten().tolist()
        firsts = torch.stack([self._keys_of[self.experts[row]][0] for row in rows] or [torch.empty(0, self.width)])
        found = refit_colliding(self.neurons.all()[stay], firsts, neuron, key, self._fit.keys, self.recipe)
        return {self.experts[rows[place]]: refitted for place, refitted in found.items()}

    def _check_it_calls_itself(self, keys: Tensor, on_keys: Tensor, stay: Tensor) -> None:
        """That no neuron that stays is as strong on the new keys as their own. (A bias sees to the converse.)"""
        if not bool(stay.any()):
            return
        rivals = self.score(keys, self.neurons.all()) - torch.tensor(self.biases)
        strongest, row = rivals.masked_fill(~stay, -torch.inf).max(dim=1)
        for place in (strongest >= on_keys).nonzero().flatten().tolist():
            self._refuse(self.experts[int(row[place])])

    def _own_after(self, neuron: Tensor, keys: Tensor, leaving: set[int], refitted: dict[int, Tensor]) -> Tensor:
        """What every key active gives its own neuron once this one is in and those are refitted; its own most."""
        kept = [row for row, expert in enumerate(self.experts) if expert not in leaving]
        place_of = {self.experts[row]: place for place, row in enumerate(kept)}
        rows = [refitted.get(self.experts[row], self.neurons.all()[row]) for row in kept]
        owners = [(key, place_of[e]) for key, e in zip(self.keys.all(), self.key_of, strict=True) if e in place_of]
        scores = self.measure_all(torch.stack([*(key for key, _ in owners), *keys]), torch.stack([*rows, neuron]))
        owner = torch.tensor([*(place for _, place in owners), *[len(rows)] * len(keys)])
        own = scores.gather(1, owner[:, None])[:, 0]
        lost = scores.scatter(1, owner[:, None], -torch.inf).max(dim=1).values >= own
        for key in lost.nonzero().flatten().tolist():
            other = int(owner[key]) if int(owner[key]) < len(rows) else int(scores[key, :-1].argmax())
            self._refuse(self.experts[kept[other]])
        return own

    def _refuse(self, expert: int) -> None:
        rival = self.project.find(expert)
        raise UsageError(
            f"edit {rival.id} ({rival.prompt!r} -> {rival.target!r}) and it cannot both stand: to this base their "
            "prompts are the same",
            hint=f"`scen revert {rival.id}` takes that one back",
        )

    def _meet(self, edits: Sequence[Edit]) -> None:
        """Read the keys of experts that were not met before."""
        new = [edit for edit in edits if edit.id not in self._keys_of]
        keys = [torch.from_numpy(self.project.keys(edit)) for edit in new]
        if new:
            prepared = self.prepare(torch.cat(keys)).split([len(some) for some in keys])
            self._keys_of.update(zip((edit.id for edit in new), prepared, strict=True))

    def _strongest(self, stay: Tensor | None = None) -> Tensor:
        """The largest activation of any neuron, or of those that `stay` (t,), on each calibration prompt (g,). Which
        neuron's it is, float32 tells; what it is, theta is made of."""
        if stay is None:
            stay = torch.ones(len(self.experts), dtype=torch.bool)
        on_guard = self.on_guard.all().masked_fill(~stay[:, None], -torch.inf)
        if not len(on_guard):
            return NOTHING.expand(len(self._calibration)).clone()
        strongest = on_guard.amax(dim=0)
        near = (on_guard >= strongest - ROUNDING) & (on_guard > BLOCKED)
        exact = strongest.masked_fill(near.any(dim=0), -torch.inf)
        for row, prompt in near.nonzero().tolist():
            keys = self._calibration.keys_of(prompt)
            exact[prompt] = max(exact[prompt], self.measure(keys, self.neurons.all()[row]).max() - self.biases[row])
        return exact

    def _on_guard(self, neuron: Tensor, bias: float, topics: MatchKey) -> Tensor:
        """The neuron's activation on each calibration prompt (g,)."""
        split = self._calibration
        return split.by_prompt(self.measure(split.keys, neuron), topics) - bias

    def prepare(self, keys: Tensor) -> Tensor:
        """Keys (n, h) as neurons are to meet them; the same, however many are prepared at once."""
        return prepare(keys.double(), self.recipe.cosine, self._whitening).float()

    def normalize_neuron(self, neuron: Tensor) -> Tensor:
        return normalize_neurons(neuron[None], self.recipe.cosine)[0]

    def score(self, prepared: Tensor, neurons: Tensor) -> Tensor:
        return score(prepared, neurons, self.recipe.cosine)

    def measure(self, prepared: Tensor, neuron: Tensor) -> Tensor:
        """A neuron's activations (n,), to be kept."""
        return self.measure_all(prepared, neuron[None])[:, 0]

    def measure_all(self, prepared: Tensor, neurons: Tensor) -> Tensor:
        """Activations (n, t) that theta and biases are made of: in float64, and then rounded, for a float32 product
        differs in its last digits with the number of rows, and theta with it."""
        return score(prepared.double(), neurons.double(), self.recipe.cosine).float()

    def _append(self, expert: int, neuron: Tensor, bias: float, keys: Tensor, on_guard: Tensor) -> None:
        self.experts.append(expert)
        self.biases.append(bias)
        self.neurons.append(neuron)
        self.on_guard.append(on_guard)
        self.strongest = torch.maximum(self.strongest, on_guard)
        for key, activation in zip(keys, self.measure(keys, neuron) - bias, strict=True):
            self.keys.append(key)
            self.own.append(activation)
            self.key_of.append(expert)
