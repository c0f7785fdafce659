"""Why a prompt calls the edit it calls: every step of its routing, in the open."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from scen_cli.editing.editor import Editor
from scen_cli.model.routing import activations_of
from scen_cli.model.template import Prompt
from scen_cli.neurons.build_guard import read_segment_keys

NEAREST = 5  # guard prompts shown


@dataclass(frozen=True)
class Part:
    """What was read: the whole sequence, or a part of it as if asked alone; its strongest edit, if there is one."""

    text: str
    edit: int | None
    activation: float | None


@dataclass(frozen=True)
class Trace:
    """`parts` in the order they were read, with their strongest edits before the second look; `blocked`: edits that
    pass theta, but whose subject the prompt does not name; `key_norm` of the first part; `guard`: the guard prompts
    whose keys are nearest to it, and the cosine (whitened, under a recipe that whitens)."""

    parts: list[Part]
    blocked: list[int]
    key_norm: float
    guard: list[tuple[str, float]]


def trace(editor: Editor, prompt: Prompt) -> Trace:
    """Route a prompt, and keep what happened on the way."""
    key_config = editor.routing.key_config
    sequences = key_config.segments_of(editor.template.prompt_ids(prompt))
    keys, _rows = read_segment_keys(editor.base, editor.edited, sequences, replace(key_config, segments=False))
    patch = editor.patch()
    whitening = patch.bank.whitening
    neurons, biases = patch.bank.neurons.cpu(), patch.bank.biases.cpu()
    found = activations_of(keys, neurons, patch.routing.cosine, whitening, biases)
    parts = []
    for tokens, activations in zip(sequences, found, strict=True):
        best = int(activations.argmax()) if len(activations) else None
        text = editor.base.tokenizer.decode(tokens)
        parts.append(Part(text, *((patch.edits[best], float(activations[best])) if best is not None else (None, None))))
    look, strongest = patch.bank.subject_filter, found.max(dim=0).values if len(patch.edits) else found[0]
    silent = look.blocked(sequences[:1], strongest.device)[0] if look else torch.zeros_like(strongest, dtype=torch.bool)
    blocked = silent & (strongest > patch.theta)
    blocked_edits = [edit for edit, is_blocked in zip(patch.edits, blocked.tolist(), strict=True) if is_blocked]
    return Trace(parts, blocked_edits, float(keys[0].norm()), _nearest_guard(editor, keys[0]))


def _nearest_guard(editor: Editor, key: torch.Tensor) -> list[tuple[str, float]]:
    guard = editor.project.guard()
    if guard is None:
        return []
    prepare = editor.index.prepare
    unit = torch.nn.functional.normalize
    nearness = unit(prepare(torch.from_numpy(guard.tensors.keys)), dim=1) @ unit(prepare(key[None]), dim=1)[0]
    nearest: dict[str, float] = {}
    for place in nearness.argsort(descending=True).tolist():
        nearest.setdefault(guard.prompts[int(guard.tensors.rows[place])].prompt, float(nearness[place]))
        if len(nearest) == NEAREST:
            break
    return list(nearest.items())
