"""Whether a base computes with numbers: weights that are none, and weights whose results are none."""

from __future__ import annotations

import torch

from scen_cli.errors import UsageError
from scen_cli.model.base import Base

PROBE = "Where is it?"


@torch.no_grad()
def check_finite(name: str, base: Base) -> None:
    """Raise `UsageError` if a weight is infinite or no number, or if a prompt leads to such values: answers would be
    empty, and keys would say nothing."""
    for weight, tensor in base.model.named_parameters():
        if tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise UsageError(
                f"`{name}` cannot be edited: its weight `{weight}` holds values that are not finite",
                hint="its file is damaged, or was converted wrongly: download or convert it again",
            )
    prompt = torch.tensor([base.tokenizer(PROBE).input_ids or [0]], device=base.device)
    if bool(base.model(input_ids=prompt).logits.isnan().any()):
        raise UsageError(
            f"`{name}` cannot be edited: its weights are finite, but what it computes in {base.model.dtype} is not",
            hint="try `--dtype float32`; if that does not help, its file is damaged: download or convert it again",
        )
