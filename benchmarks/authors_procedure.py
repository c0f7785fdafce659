"""The authors' procedure, written from the paper: the slow reference of `edit_speed` and `first_edit`.

The whole model runs in float32 at each step of an expert, and for every earlier prompt at each step of a neuron. Each
expert is a float32 file, which is read for every query.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scen_cli.model.base import Base
from scen_cli.model.template import Template
from scen_cli.neurons.neuron_fit import neuron_loss
from scen_cli.recipe import Recipe


class AuthorsProcedure:
    """SCEN on `model.layers[layer].mlp.down_proj` of a float32 base, one edit and one query at a time."""

    def __init__(self, base: Base, template: Template, layer: int, recipe: Recipe, folder: Path) -> None:
        self.model, self.template, self.recipe, self.folder = base.model, template, recipe, folder
        self.down_proj = base.model.model.layers[layer].mlp.down_proj
        self.base_weight = self.down_proj.weight.detach().clone()
        self.prompts: list[Tensor] = []
        self.neurons: list[Tensor] = []

    def edit(self, prompt: str, target: str, keys: Tensor | None = None) -> None:
        """Make one edit.

        Args:
            prompt: The prompt of the edit.
            target: Its target.
            keys: Keys (t, h) of all prompts up to this one. They replace the runs of the model that would give the
                same numbers, for edits that are not timed.
        """
        ids = torch.tensor([self.template.prompt_ids(prompt)])
        expert = self._train_expert(ids, torch.tensor([self.template.target_ids(prompt, target)]))
        save_file({"expert": expert}, self.folder / f"{len(self.prompts):06d}.safetensors")
        self.prompts.append(ids)
        self.neurons.append(self._train_neuron(keys))

    def answer(self, prompt: str, max_new_tokens: int = 50) -> str:
        """Run the whole model to route, read the file of the expert, generate greedily."""
        ids = torch.tensor([self.template.prompt_ids(prompt)])
        activations = torch.sigmoid(torch.stack(self.neurons) @ self._key(ids))
        strongest, expert = activations.max(dim=0)
        if strongest > self.recipe.theta:
            self.down_proj.weight.data = load_file(self.folder / f"{int(expert):06d}.safetensors")["expert"]
        try:
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens
            )
        finally:
            self.down_proj.weight.data = self.base_weight
        return self.template.answer(out[0, ids.shape[1] :].tolist())

    def _train_expert(self, prompt: Tensor, target: Tensor) -> Tensor:
        ids = torch.cat([prompt, target], dim=1)
        labels = ids.clone()
        labels[:, : prompt.shape[1]] = -100
        weight = self.down_proj.weight
        weight.data = self.base_weight.clone()
        weight.requires_grad_(True)
        optimizer = torch.optim.Adam([weight], lr=self.recipe.expert_lr)
        for _ in range(self.recipe.expert_steps):
            optimizer.zero_grad()
            self.model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
        weight.requires_grad_(False)
        expert, weight.data = weight.data, self.base_weight
        return expert

    def _train_neuron(self, keys: Tensor | None) -> Tensor:
        neuron = nn.Linear(self.base_weight.shape[1], 1, bias=False)
        optimizer = torch.optim.Adam(neuron.parameters(), lr=self.recipe.neuron_lr)
        for _ in range(self.recipe.neuron_steps):
            all_keys = keys if keys is not None else torch.stack([self._key(ids) for ids in self.prompts])
            activations = torch.sigmoid(neuron(all_keys))[:, 0]
            loss = neuron_loss(activations[-1:], activations[:-1], self.recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return neuron.weight.detach()[0]

    @torch.no_grad()
    def _key(self, ids: Tensor) -> Tensor:
        inputs: list[Tensor] = []
        handle = self.down_proj.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
        self.model(input_ids=ids)
        handle.remove()
        return inputs[0][0, -1]
