"""The device of a module. This file needs torch only; exported checkpoints contain a copy of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """The device that a module computes on: that of its weights, or the device of accelerate's hook if the weights are
    offloaded."""
    device: torch.device = next(module.parameters()).device
    if device.type != "meta":
        return device
    hook: Any = module._hf_hook  # set by accelerate
    return torch.device(next(inner.execution_device for inner in getattr(hook, "hooks", [hook])))
