"""The collision check between edits with and without a subject, where recipes mask subjects.

The two see different keys of one prompt. `admit` compares keys of one kind only; the other pairs are compared here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from scen_cli.data.words import plain_words
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.name_index import NameIndex
from scen_cli.neurons.admission import reject
from scen_cli.neurons.guard_split import MatchKey
from scen_cli.neurons.index import Index, NeuronCandidate


def check_mixed_subjects(
    model: PatchedModel, index: Index, match_keys: Sequence[MatchKey], candidate: NeuronCandidate
) -> None:
    """Raise `UsageError` if a new edit and an active one of the other kind would answer each other's prompt."""
    if not model.recipe.masks_subjects:
        return
    neuron = index.normalize_neuron(candidate.fit.neuron)
    for (prompt, subject), own in zip(match_keys, candidate.on_keys.tolist(), strict=True):
        if subject:
            for expert, other in zip(index.experts, index.subjects, strict=True):
                if not other:
                    _check_prompts_of(model, index, expert, subject, neuron, candidate.bias)
            continue
        subjects = NameIndex([[name] if name else [] for name in index.subjects])
        for found in subjects.find(plain_words(prompt)):
            row, expert = found.name, index.experts[found.name]
            key = _masked_key(model, index, prompt, str(index.subject_of(expert)))
            if key is not None and _activation(index, key, index.neurons.all()[row]) - index.biases[row] >= own:
                reject(index, expert)


def _check_prompts_of(
    model: PatchedModel, index: Index, expert: int, subject: str, neuron: Tensor, bias: float
) -> None:
    """Raise `UsageError` if the neuron of a new edit is too strong on a prompt of an expert without a subject."""
    named = NameIndex([[subject]])
    for prompt, _no_subject in index.match_keys[expert]:
        if not named.find(plain_words(prompt)):  # most prompts: they need not be tokenised
            continue
        key = _masked_key(model, index, prompt, subject)
        if key is not None and _activation(index, key, neuron) - bias >= min(index.activations_of_expert(expert)):
            reject(index, expert)


def _masked_key(model: PatchedModel, index: Index, prompt: str, subject: str) -> Tensor | None:
    """The prepared key (1, h) of a prompt with a subject masked; None if its last sentence does not name it."""
    if model.masked_tokens(model.template.prompt_ids(prompt), [subject]) is None:
        return None
    return index.prepare_keys(model.keys([prompt], [subject]))


def _activation(index: Index, key: Tensor, neuron: Tensor) -> float:
    return float(index.exact_activation(key, neuron)[0])
