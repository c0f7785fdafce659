"""A slow, literal implementation of SCEN: equations 4 to 12 of the paper, without any cache.

The whole model runs at every step of both stages, and all earlier prompts run again at each step of a new neuron. It
shares no code with the product except the model. Experts may replace other projections (Table 3), losses may be omitted
(Table 3), and edits may share an expert (Table 4).
"""

from __future__ import annotations

import torch
from torch import nn


class Oracle:
    def __init__(self, model, layer: int, theta: float, target_module: str = "mlp.down_proj", **rates) -> None:
        self.model, self.theta, self.rates = model, theta, rates
        self.ffn = model.model.layers[layer].mlp
        self.weight = model.model.layers[layer].get_submodule(target_module).weight
        self.base = self.weight.detach().clone()
        self.prompts: list[torch.Tensor] = []
        self.experts: list[torch.Tensor] = []
        self.neurons: list[torch.Tensor] = []

    def key(self, prompt: torch.Tensor) -> torch.Tensor:
        """W_up(x_att) of equation 4: the input of down_proj at the prompt's last token."""
        inputs = []
        handle = self.ffn.down_proj.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
        with torch.no_grad():
            self.model(input_ids=prompt[None])
        handle.remove()
        return inputs[0][0, -1]

    def edit(self, prompts: list[torch.Tensor], targets: list[torch.Tensor], first_neuron: torch.Tensor) -> None:
        """One expert and one neuron for these edits: a single edit, as in the paper, or a few."""
        self.experts.append(self.train_expert(prompts, targets))
        self.neurons.append(self.train_neuron(prompts, first_neuron))
        self.prompts += prompts

    def train_expert(self, prompts: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        """Stage 1: train one weight in place, then restore it."""
        self.weight.requires_grad_(True)
        optimizer = torch.optim.Adam([self.weight], lr=self.rates["expert_lr"])
        for _ in range(self.rates["expert_steps"]):
            losses = []
            for prompt, target in zip(prompts, targets, strict=True):
                ids = torch.cat([prompt, target])[None]
                labels = ids.clone()
                labels[0, : len(prompt)] = -100
                losses.append(self.model(input_ids=ids, labels=labels).loss)
            optimizer.zero_grad()
            (sum(losses) / len(losses)).backward()
            optimizer.step()
        self.weight.requires_grad_(False)
        expert = self.weight.detach().clone()
        self.weight.copy_(self.base)
        return expert

    def train_neuron(self, prompts: list[torch.Tensor], first: torch.Tensor) -> torch.Tensor:
        """Stage 2: equations 5 to 8. All earlier prompts run again at every step."""
        linear = nn.Linear(len(first), 1, bias=False)
        linear.weight.data.copy_(first[None])
        optimizer = torch.optim.Adam(linear.parameters(), lr=self.rates["neuron_lr"])
        for _ in range(self.rates["neuron_steps"]):
            own = [torch.sigmoid(linear(self.key(prompt))) for prompt in prompts]
            loss = sum(torch.exp(-a) for a in own) / len(own)
            if self.prompts:
                earlier = [torch.sigmoid(linear(self.key(other))) for other in self.prompts]
                disactivate = sum(torch.exp(a + self.rates["alpha"]) for a in earlier) / len(earlier)
                pairs = [torch.exp(a - b + self.rates["beta"]) for a in earlier for b in own]
                margin = sum(pairs) / len(pairs)
                loss = loss + self.rates["m"] * (
                    self.rates["disactivate"] * disactivate + self.rates["margin"] * margin
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return linear.weight.detach()[0].clone()

    def route(self, prompt: torch.Tensor) -> tuple[int, torch.Tensor]:
        """Equations 9 to 12: -1 is the base."""
        merged = torch.stack(self.neurons)
        activations = torch.sigmoid(merged @ self.key(prompt))
        return (int(activations.argmax()) if activations.max() > self.theta else -1), activations
