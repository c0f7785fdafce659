"""A literal, slow SCEN, straight from the paper's equations 4 to 12: no cache of any kind.

The whole model runs at every step of both stages, and every earlier prompt is run again at each
step of a new neuron. It shares no code with the product beyond the model itself.
"""

from __future__ import annotations

import torch
from torch import nn


class Oracle:
    def __init__(self, model, layer: int, theta: float, **rates) -> None:
        self.model, self.theta, self.rates = model, theta, rates
        self.ffn = model.model.layers[layer].mlp
        self.base = self.ffn.down_proj.weight.detach().clone()
        self.prompts: list[torch.Tensor] = []
        self.experts: list[torch.Tensor] = []
        self.neurons: list[torch.Tensor] = []

    def key(self, prompt: torch.Tensor) -> torch.Tensor:
        """Equation 4's W_up(x_att): what enters down_proj at the prompt's last token."""
        seen = []
        handle = self.ffn.down_proj.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        with torch.no_grad():
            self.model(input_ids=prompt[None])
        handle.remove()
        return seen[0][0, -1]

    def edit(self, prompt: torch.Tensor, target: torch.Tensor, first_neuron: torch.Tensor) -> None:
        self.experts.append(self.train_expert(prompt, target))
        self.neurons.append(self.train_neuron(prompt, first_neuron))
        self.prompts.append(prompt)

    def train_expert(self, prompt: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Stage 1: W_down alone is trained, in place, and then put back."""
        ids = torch.cat([prompt, target])[None]
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        weight = self.ffn.down_proj.weight
        weight.requires_grad_(True)
        optimizer = torch.optim.Adam([weight], lr=self.rates["expert_lr"])
        for _ in range(self.rates["expert_steps"]):
            loss = self.model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weight.requires_grad_(False)
        expert = weight.detach().clone()
        weight.copy_(self.base)
        return expert

    def train_neuron(self, prompt: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Stage 2: equations 5 to 8, every earlier prompt run again at every step."""
        linear = nn.Linear(len(first), 1, bias=False)
        linear.weight.data.copy_(first[None])
        optimizer = torch.optim.Adam(linear.parameters(), lr=self.rates["neuron_lr"])
        for _ in range(self.rates["neuron_steps"]):
            own = torch.sigmoid(linear(self.key(prompt)))
            loss = torch.exp(-own)
            if self.prompts:
                earlier = [torch.sigmoid(linear(self.key(other))) for other in self.prompts]
                loss = loss + self.rates["m"] * (
                    sum(torch.exp(a + self.rates["alpha"]) for a in earlier) / len(earlier)
                    + sum(torch.exp(a - own + self.rates["beta"]) for a in earlier) / len(earlier)
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
