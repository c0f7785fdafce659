"""Losses of one text at a time, without padding: what batched scoring must equal."""

from __future__ import annotations

import torch


def losses_of(editor, ids, scored, edit):
    """Losses of the last `scored` tokens, with the layer's weight itself replaced by the edit's expert."""
    weight = editor.edited.down_proj.weight
    before = weight.detach().clone()
    if edit is not None:
        weight.copy_(torch.from_numpy(editor.project.expert(edit)))
    with torch.no_grad():
        logits = editor.model(input_ids=torch.tensor([ids])).logits[0].double()
    weight.copy_(before)
    likelihoods = logits.log_softmax(dim=-1)
    return [-likelihoods[i - 1, ids[i]].item() for i in range(len(ids) - scored, len(ids))]
