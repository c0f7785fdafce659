"""The collision check between edits with and without a subject, where recipes mask subjects.

The two see different keys of one prompt. `admit` compares keys of one kind only; the other pairs are compared here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from scen_cli.data.lexical_overlap import plain_name
from scen_cli.editing.patched_model import PatchedModel
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
    for number, (prompt, subject) in enumerate(match_keys):
        own = float(candidate.on_keys[number])
        for row, expert in enumerate(index.experts):
            for other_prompt, other_subject in index.match_keys[expert]:
                if subject is None and other_subject is not None and _may_name(prompt, other_subject):
                    key = _masked_key(model, index, prompt, other_subject)
                    rival = index.neurons.all()[row]
                    if key is not None and _activation(index, key, rival) - index.biases[row] >= own:
                        reject(index, expert)
                if subject is not None and other_subject is None and _may_name(other_prompt, subject):
                    key = _masked_key(model, index, other_prompt, subject)
                    others_own = min(index.activations_of_expert(expert))
                    if key is not None and _activation(index, key, neuron) - candidate.bias >= others_own:
                        reject(index, expert)


def _may_name(prompt: str, subject: str) -> bool:
    return plain_name(subject) in plain_name(prompt)


def _masked_key(model: PatchedModel, index: Index, prompt: str, subject: str) -> Tensor | None:
    """The prepared key (1, h) of a prompt with a subject masked; None if its last sentence does not name it."""
    forms = model.template.subject_forms(subject, ())
    if model.routing.key_config.mask_any(model.template.prompt_ids(prompt), forms) is None:
        return None
    return index.prepare_keys(model.keys([prompt], forms))


def _activation(index: Index, key: Tensor, neuron: Tensor) -> float:
    return float(index.exact_activation(key, neuron)[0])
