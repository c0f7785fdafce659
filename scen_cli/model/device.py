"""Where a module computes. This file needs torch alone, and is copied as it is into exported checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's weights, or, if they are kept away until it is called, that on which it is called."""
    at: torch.device = next(module.parameters()).device
    if at.type != "meta":
        return at
    hook: Any = module._hf_hook  # accelerate's
    return torch.device(next(one.execution_device for one in getattr(hook, "hooks", [hook])))
