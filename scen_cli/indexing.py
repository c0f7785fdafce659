"""`Index`: the neurons in force, and how one more is let in: fitted, calibrated, and in nobody's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scen_cli.data.records import EditRecord
from scen_cli.data.topics import Topics, plain
from scen_cli.editing.calibration import calibrate
from scen_cli.editing.closed_form import bias_of, neuron_of
from scen_cli.editing.joint import fit_joint, refit_thieves
from scen_cli.editing.neurons import NeuronFit, train_neuron
from scen_cli.editing.recipe import Recipe
from scen_cli.editing.rows import Rows
from scen_cli.errors import UsageError
from scen_cli.model.routing import Routing, Whitening, largest, prepare, score
from scen_cli.project.guard import SELF_WRITTEN
from scen_cli.project.ledger import Threshold, now
from scen_cli.project.project import Project

NEAR = 0.7  # activation from which on prompts about the same are one question (benchmarks/LOG.md)
MARGIN = 0.01  # by which an edit's own prompt passes theta, and other edits stay behind it

About = Sequence[tuple[str, str | None]]  # (prompt, subject) of each edit that an expert serves


@dataclass(frozen=True)
class Admission:
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
    """W_merge of a project with what it was made from: the keys of all edits in force, and the guard."""

    def __init__(self, project: Project, recipe: Recipe, routing: Routing, whitening: Whitening | None) -> None:
        """`routing` and `whitening` as the project's patch has them, the latter on the CPU."""
        self.project, self.recipe, self.routing, self.whitening = project, recipe, routing, whitening
        self.width = int(project.settings["ffn_width"])
        self._expert_of: dict[int, int] | None = None
        self._keys_of: dict[int, Tensor] = {}  # of every expert met, prepared: a key never changes
        self._guard_prompts: list[str] = []
        self._topics = Topics([])
        self._fit = torch.empty(0, self.width)
        if guard := project.guard():
            self._fit = self.prepare(torch.from_numpy(guard.part("fit")[1]))
            self._guard_prompts, keys, rows = guard.part("calibration")
            self._calibration, self._rows = self.prepare(torch.from_numpy(keys)), torch.from_numpy(rows)
            self._topics = Topics(self._guard_prompts)
            self._plain = [plain(prompt) for prompt in self._guard_prompts]
            self._given = guard.source != SELF_WRITTEN

    def load(self) -> None:
        """Meet the ledger: nothing to do unless somebody else has changed it."""
        expert_of = self.project.ledger.experts_in_force()
        if expert_of == self._expert_of:
            return
        merged = self.project.merged()
        self.experts: list[int] = []
        self.biases: list[float] = []
        self.key_of: list[int] = []  # the expert that each key is to call
        self.neurons, self.keys, self.on_guard = Rows(self.width), Rows(self.width), Rows(len(self._guard_prompts))
        self.own = Rows(1)  # what each key gives the neuron that it is to call
        about: dict[int, list[tuple[str, str | None]]] = {expert: [] for expert in merged.experts}
        for edit in self.project.ledger.edits("active"):
            about[expert_of[edit.id]].append((edit.prompt, edit.subject))
        for expert, neuron, bias in zip(merged.experts, torch.from_numpy(merged.neurons), merged.biases, strict=True):
            if expert not in self._keys_of:
                self._keys_of[expert] = self.prepare(torch.from_numpy(self.project.keys(expert)))
            on_guard = self._on_guard(neuron, float(bias), about[expert])
            self._append(expert, neuron, float(bias), self._keys_of[expert], on_guard)
        self._expert_of = expert_of

    def admit(self, keys: Tensor, learned: Tensor, about: About, seed: int, leaving: set[int]) -> Admission | None:
        """Fit a neuron to keys (n, h) of edits that share an expert, and to those of `learned` rephrases (m, h);
        the experts of `leaving` count no more. None if it diverged.

        Where there is a guard, every edit calls itself afterwards: raises `UsageError` if one could not.
        """
        stay = torch.tensor([expert not in leaving for expert in self.experts], dtype=torch.bool)
        keys_stay = torch.tensor([expert not in leaving for expert in self.key_of], dtype=torch.bool)
        others, own = self.keys.all()[keys_stay], self.own.all()[keys_stay, 0]
        fit = self._fit_neuron(keys, learned, others, seed)
        if not fit.neuron.isfinite().all():
            return None
        refitted: dict[int, Tensor] = {}
        bias = 0.0
        if self.recipe.index == "closed-form":
            bias = bias_of(self._score(self._fit, fit.neuron[None])[:, 0])
            on_others = self._score(others, fit.neuron[None])[:, 0] - bias
            bias += max(0.0, float((on_others - own).max()) + MARGIN) if len(others) else 0.0
        elif self.recipe.index == "joint":
            refitted = self._refit_thieves(keys[0], fit.neuron, stay)
        prepared = self.prepare(keys)
        on_keys = self._score(prepared, fit.neuron[None])[:, 0] - bias
        on_guard = self._on_guard(fit.neuron, bias, about)
        threshold = None
        if self.recipe.needs_guard:
            self._check_it_calls_itself(prepared, on_keys, stay, refitted)
            limit = min(float(on_keys.min()), float(own.min()) if len(own) else 1.0) - MARGIN
            strongest = torch.cat([self.on_guard.all()[stay], on_guard[None]]).max(dim=0).values
            threshold = self.calibrated(strongest, limit)
        return Admission(fit, bias, keys, on_keys, on_guard, refitted, threshold)

    def accept(self, expert: int, admitted: Admission, leaving: set[int]) -> None:
        """Take in what has been committed as this expert."""
        self._keys_of[expert] = self.prepare(admitted.keys)
        self._append(expert, admitted.fit.neuron, admitted.bias, self._keys_of[expert], admitted.on_guard)
        # Where rows go or change, the next load makes all anew.
        changed = leaving or admitted.refitted
        self._expert_of = None if changed else self.project.ledger.experts_in_force()

    def strongest_on_guard(self) -> Tensor:
        """The largest activation of any neuron in force on each calibration prompt (g,)."""
        if not self.experts:
            return torch.full((len(self._guard_prompts),), -torch.inf)
        return self.on_guard.all().max(dim=0).values

    def calibrated(self, strongest: Tensor, limit: float, false_activation: float | None = None) -> Threshold | None:
        """The threshold for a rate of false activations (the one in force, or another); not above `limit`, where
        an edit would no longer call itself. None if theta is set by hand."""
        now_in_force = self.project.ledger.threshold()
        rate = false_activation or now_in_force.false_activation
        if rate is None and now_in_force.chosen_by == "init":
            rate = self.recipe.false_activation
        if rate is None:
            return None
        found = calibrate(strongest, rate, self.recipe.theta, limit)
        return Threshold(found.theta, "calibration", now(), rate, found.expected, found.low, found.high, found.n)

    def same_topic(self, record: EditRecord, prompt: str, subject: str | None) -> bool:
        """Whether a record and an edit may be about the same."""
        return self._topics.same(record.prompt, record.subject, prompt, subject)

    @property
    def limit(self) -> float:
        """The highest theta at which every edit in force calls itself."""
        return float(self.own.all().min()) - MARGIN if len(self.own) else 1.0

    def _fit_neuron(self, keys: Tensor, learned: Tensor, others: Tensor, seed: int) -> NeuronFit:
        kind = self.recipe.index
        if kind == "paper":
            return train_neuron(keys, others, self.recipe, seed)
        if kind == "joint":
            return fit_joint(torch.cat([keys, learned]), others, self._fit, self.recipe, seed)
        return NeuronFit(neuron_of(keys, learned, self.whitening), [])

    def _refit_thieves(self, key: Tensor, neuron: Tensor, stay: Tensor) -> dict[int, Tensor]:
        """Neurons that take the new key, fitted again."""
        rows = stay.nonzero().flatten().tolist()
        firsts = torch.stack([self._keys_of[self.experts[row]][0] for row in rows] or [torch.empty(0, self.width)])
        found = refit_thieves(self.neurons.all()[stay], firsts, neuron, key, self._fit, self.recipe)
        return {self.experts[rows[place]]: refitted for place, refitted in found.items()}

    def _check_it_calls_itself(self, keys: Tensor, on_keys: Tensor, stay: Tensor, refitted: dict[int, Tensor]) -> None:
        neurons = self.neurons.all().clone() if refitted else self.neurons.all()
        for expert, neuron in refitted.items():
            neurons[self.experts.index(expert)] = neuron
        if not bool(stay.any()):
            return
        rivals = self._score(keys, neurons) - torch.tensor(self.biases)
        strongest, row = rivals.masked_fill(~stay, -torch.inf).max(dim=1)
        for place in (strongest >= on_keys).nonzero().flatten().tolist():
            rival = self.project.find(self.experts[int(row[place])])
            raise UsageError(
                f"edit {rival.id} ({rival.prompt!r} -> {rival.target!r}) would take its prompt: to this base they are "
                "the same",
                hint=f"`scen revert {rival.id}` takes that one back; `--conflicts supersede` puts this in its place",
            )

    def _on_guard(self, neuron: Tensor, bias: float, about: About) -> Tensor:
        """The neuron's activation on each calibration prompt (g,), its largest part's; -inf where the prompt is an
        edit's own: the same words or, if nobody gave the guard, a question about the same and near it."""
        if not self._guard_prompts:
            return torch.empty(0)
        found = largest(self._score(self._calibration, neuron[None]), self._rows, len(self._guard_prompts))
        near = found[:, 0] >= NEAR
        for prompt, subject in about:
            same = plain(prompt)
            own = torch.tensor([words == same for words in self._plain])
            if not self._given and bool(near.any()):
                own |= near & torch.tensor(self._topics.about(prompt, subject))
            found = found.masked_fill(own[:, None], -torch.inf)
        return found[:, 0] - bias

    def prepare(self, keys: Tensor) -> Tensor:
        """Keys (n, h) as neurons are to meet them."""
        return prepare(keys, self.routing.cosine, self.whitening)

    def _score(self, prepared: Tensor, neurons: Tensor) -> Tensor:
        return score(prepared, neurons, self.routing.cosine)

    def _append(self, expert: int, neuron: Tensor, bias: float, keys: Tensor, on_guard: Tensor) -> None:
        self.experts.append(expert)
        self.biases.append(bias)
        self.neurons.append(neuron)
        self.on_guard.append(on_guard)
        for key, activation in zip(keys, self._score(keys, neuron[None])[:, 0] - bias, strict=True):
            self.keys.append(key)
            self.own.append(activation)
            self.key_of.append(expert)
