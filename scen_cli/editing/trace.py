"""Every step of a prompt's routing, for `scen ask --trace`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from scen_cli.editing.editor import Editor
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.routing import activations_of
from scen_cli.model.subject_filter import BLOCKED
from scen_cli.model.template import Prompt

NEAREST = 5  # guard prompts shown


@dataclass(frozen=True)
class Segment:
    """A segment of the prompt whose key was read, with the edit of the largest activation, if there is any edit."""

    text: str
    edit: int | None
    activation: float | None


@dataclass(frozen=True)
class Trace:
    """How a prompt was routed.

    Attributes:
        segments: The whole prompt, then its segments, before the subject filter. Where the recipe masks subjects, also
            what the edits of each subject that the prompt names see.
        blocked: Edits above theta whose subject the prompt does not name.
        key_norm: Length of the whole prompt's key.
        guard: The guard prompts with the nearest keys, and the cosine (of whitened keys, if the recipe whitens).
    """

    segments: list[Segment]
    blocked: list[int]
    key_norm: float
    guard: list[tuple[str, float]]


def trace(editor: Editor, prompt: Prompt) -> Trace:
    """Route a prompt and keep every step."""
    key_config, patch = editor.routing.key_config, editor.patch()
    tokens, subjects = editor.template.prompt_ids(prompt), patch.bank.subject_filter
    sequences = key_config.segments_of(tokens)
    seen_by: list[list[int] | None] = [None] * len(sequences)  # rows of W_merge; None: all that mask nothing
    if key_config.mask and subjects is not None:
        for subject in subjects.named(tokens):
            masked = key_config.masked_segments_of(tokens, subject.spans)
            sequences, seen_by = sequences + masked, seen_by + [subject.rows] * len(masked)
    keys, _rows = read_segment_keys(editor.base, editor.edited, sequences, replace(key_config, segments=False))
    neurons, biases = patch.bank.neurons.cpu(), patch.bank.biases.cpu()
    found = activations_of(keys, neurons, patch.routing.cosine, patch.bank.whitening, biases)
    if key_config.mask and subjects is not None:
        has_subject = subjects.with_subject(found.device)
        for activations, seen in zip(found, seen_by, strict=True):
            unseen = has_subject.clone() if seen is None else torch.ones_like(has_subject)
            unseen[seen or []] = False
            activations[unseen] = BLOCKED
    segments = []
    for sequence, activations in zip(sequences, found, strict=True):
        row = int(activations.argmax()) if len(activations) and activations.max() > BLOCKED else None
        strongest = (None, None) if row is None else (patch.edits[row], float(activations[row]))
        segments.append(Segment(editor.base.tokenizer.decode(sequence), *strongest))
    return Trace(segments, _blocked(editor, sequences[0], found), float(keys[0].norm()), _nearest(editor, keys[0]))


def _blocked(editor: Editor, tokens: list[int], activations: torch.Tensor) -> list[int]:
    """Edits above theta, on any segment (rows of `activations`), that the subject filter blocks."""
    patch = editor.patch()
    if patch.bank.subject_filter is None or not patch.edits:
        return []
    largest = activations.max(dim=0).values
    blocked = patch.bank.subject_filter.blocked([tokens], largest.device)[0] & (largest > patch.theta)
    return [edit for edit, is_blocked in zip(patch.edits, blocked.tolist(), strict=True) if is_blocked]


def _nearest(editor: Editor, key: torch.Tensor) -> list[tuple[str, float]]:
    """The guard prompts with the nearest keys, and the cosine of each."""
    guard = editor.project.guard()
    if guard is None:
        return []
    prepare, unit = editor.index.prepare_keys, torch.nn.functional.normalize
    cosines = unit(prepare(torch.from_numpy(guard.tensors.keys)), dim=1) @ unit(prepare(key[None]), dim=1)[0]
    nearest: dict[str, float] = {}
    for row in cosines.argsort(descending=True).tolist():
        nearest.setdefault(guard.prompts[int(guard.tensors.rows[row])].prompt, float(cosines[row]))
        if len(nearest) == NEAREST:
            break
    return list(nearest.items())
