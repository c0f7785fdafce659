"""Train experts for edit records. Needs a base, but no project folder: worker processes use it too.

An expert learns its target from the edit's own prompt, its training rephrases, and prompt augmentations. These put
around a question what real requests put around it, so that the expert answers in that context too.

`TrainingWorker` does it in another process, and sends experts as safetensors, never as pickled tensors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from scen_cli.data.question_bank import other_questions
from scen_cli.data.records import EditRecord
from scen_cli.experts.fit import ExpertFit, ExpertTask, fit_experts
from scen_cli.model.expert_stack import LowRank
from scen_cli.model.generation import generate_answers
from scen_cli.model.loaded_base import LoadedBase, TokenizedEdit
from scen_cli.model.template import Prompt, SecondTurn
from scen_cli.recipe import Recipe, stored_recipe

# `evaluation/robustness.py` scores with other sentences than these.
OPENINGS = ("Please answer the following.", "Let me ask something else now.", "Someone wants to know this.")
KEPT_TOKENS = 8  # of the base's answer to a question that an expert must not change
FIRST_TURNS = (("What can you do?", "I can answer questions."), ("Hello", "Hello! How can I help?"))


def further_training_prompts(loaded: LoadedBase, record: EditRecord, augmentations: int) -> list[Prompt]:
    """Training rephrases and augmentations of a record, without those that exceed the base's context."""
    prompts = [*record.train_rephrases, *augmented_prompts(record.prompt, augmentations)]
    return [prompt for prompt in prompts if loaded.has_room(len(loaded.tokenize_pair(prompt, record.target).input_ids))]


def augmented_prompts(prompt: str, count: int) -> list[Prompt]:
    """The first `count` of four augmentations: after a sentence, in a second turn, in lower case, after two sentences.
    The choice of sentences depends on the prompt only."""
    seed = sum(map(ord, prompt))
    first, second = OPENINGS[seed % 3], OPENINGS[(seed + 1) % 3]
    augmented: list[Prompt] = [
        f"{first} {prompt}",
        SecondTurn(*FIRST_TURNS[seed % 2], prompt),
        prompt.lower(),
        f"{first} {second} {prompt}",
    ]
    return augmented[:count]


Group = list[EditRecord]  # records that share an expert; one as a rule


@dataclass(frozen=True)
class FittedExpert:
    """The expert of a group of records.

    Attributes:
        fit: The expert and its losses.
        seconds: The training time.
        batch: Its index among the experts that were trained with it, and their number. The last digits depend on them.
    """

    fit: ExpertFit
    seconds: float
    batch: tuple[int, int] = (0, 1)


# Trains batches of groups, in this process or in workers, and yields the experts of each batch in order.
FitAll = Callable[[Sequence[Sequence[Group]]], Iterator[list[FittedExpert]]]


def fit(loaded: LoadedBase, groups: Sequence[Group], recipe: Recipe) -> list[FittedExpert]:
    """Train an expert for each group of records, all in one batch.

    Raises:
        UsageError: A record can never be trained.
    """
    started = time.perf_counter()
    fits = fit_experts(loaded.model, loaded.edited, [_task(loaded, group, recipe) for group in groups], recipe)
    seconds, size = (time.perf_counter() - started) / len(groups), len(groups)
    return [FittedExpert(fit, seconds, (index, size)) for index, fit in enumerate(fits)]


def _task(loaded: LoadedBase, group: Group, recipe: Recipe) -> ExpertTask:
    for record in group:
        loaded.check_trainable(record)
    further = [
        loaded.tokenize_pair(prompt, record.target)
        for record in group
        for prompt in further_training_prompts(loaded, record, recipe.prompt_augmentations)
    ]
    kept = [sample for record in group for sample in kept_samples(loaded, record, recipe.kept_questions)]
    return ExpertTask([loaded.tokenize_edit(record) for record in group], further, kept)


def kept_samples(loaded: LoadedBase, record: EditRecord, count: int) -> list[TokenizedEdit]:
    """Other questions about a record's subject, each with the beginning of the base's own answer."""
    if not count or not record.subject:
        return []
    questions = other_questions(record.subject, record.prompt, count)
    rows = [
        ids for question in questions if loaded.has_room(len(ids := loaded.template.prompt_ids(question)) + KEPT_TOKENS)
    ]

    def generate(_batch: list[int], ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
        out: Tensor = loaded.model.generate(input_ids=ids, attention_mask=mask, **options)
        return out

    answers = generate_answers(loaded.base, loaded.template, rows, generate, max_new_tokens=KEPT_TOKENS)
    samples = []
    for ids, answer in zip(rows, answers, strict=True):
        target = answer if len(answer) == KEPT_TOKENS else [*answer, loaded.template.end_id]
        samples.append(TokenizedEdit([*ids, *target], len(target)))
    return samples


_METADATA = "metadata"  # a tensor of bytes: JSON


def experts_to_bytes(experts: Sequence[FittedExpert]) -> bytes:
    """Serialise experts with their losses, status and training time."""
    tensors: dict[str, Tensor] = {}
    metadata: list[dict[str, Any]] = []
    for index, fitted in enumerate(experts):
        fit, expert = fitted.fit, fitted.fit.expert
        parts = {"full": expert} if isinstance(expert, Tensor) else {"a": expert.a, "b": expert.b}
        tensors |= {f"{index}.{name}": part.detach().cpu().contiguous() for name, part in parts.items()}
        status = {"losses": fit.losses, "wrong_tokens": fit.wrong_tokens, "logit_margin": fit.logit_margin}
        metadata.append({"fit": status, "seconds": fitted.seconds, "batch": fitted.batch})
    text = json.dumps(metadata).encode()
    return bytes(save({**tensors, _METADATA: torch.frombuffer(bytearray(text), dtype=torch.uint8)}))


def experts_from_bytes(data: bytes) -> list[FittedExpert]:
    """The experts that `experts_to_bytes` serialised, bit for bit."""
    tensors = load(data)
    experts = []
    for index, entry in enumerate(json.loads(bytes(tensors[_METADATA].tolist()))):
        full = tensors.get(f"{index}.full")
        expert = LowRank(tensors[f"{index}.a"], tensors[f"{index}.b"]) if full is None else full
        experts.append(FittedExpert(ExpertFit(expert, **entry["fit"]), entry["seconds"], tuple(entry["batch"])))
    return experts


class TrainingWorker:
    """Has its own copy of the base, loaded with the first batch. It knows the project's settings, but never touches the
    project's folder: only the parent process writes.

    Args:
        settings: The project's settings.
        device: As in `base.pick_device`.
        threads: Torch's number of threads: the parent's, because the last digits of results depend on it.
    """

    def __init__(self, settings: Mapping[str, Any], device: str, threads: int) -> None:
        self._settings, self._device, self._threads = settings, device, threads

    @cached_property
    def _loaded(self) -> LoadedBase:
        torch.set_num_threads(self._threads)
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        return LoadedBase(self._settings, self._device)

    def fit(self, groups: Sequence[Group]) -> bytes:
        """Train a batch; returns `experts_to_bytes`. Raises `UsageError` if the project's base cannot be loaded."""
        return experts_to_bytes(fit(self._loaded, groups, stored_recipe(dict(self._settings))))

    def ping(self) -> None:
        """Return as soon as the worker runs."""
