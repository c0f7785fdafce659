"""Train experts for edit records. Needs a base, but no project folder: worker processes use it too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scen_cli.data.records import EditRecord
from scen_cli.experts.fit import ExpertFit, fit_experts
from scen_cli.experts.training_batch import ExpertTask
from scen_cli.experts.training_prompts import further_training_prompts
from scen_cli.model.loaded_base import LoadedBase
from scen_cli.recipe import Recipe

Group = list[EditRecord]  # records that share an expert; one as a rule


@dataclass(frozen=True)
class FittedExpert:
    """The expert of a group of records, and the training time in seconds."""

    fit: ExpertFit
    seconds: float


# Trains batches of groups, in this process or in workers, and yields the experts of each batch in order.
FitAll = Callable[[Sequence[Sequence[Group]]], Iterator[list[FittedExpert]]]


def fit(loaded: LoadedBase, groups: Sequence[Group], recipe: Recipe) -> list[FittedExpert]:
    """Train an expert for each group of records, all in one batch.

    Raises:
        UsageError: A record can never be trained.
    """
    started = time.perf_counter()
    fits = fit_experts(loaded.model, loaded.edited, [_task(loaded, group, recipe) for group in groups], recipe)
    return [FittedExpert(fit, (time.perf_counter() - started) / len(groups)) for fit in fits]


def _task(loaded: LoadedBase, group: Group, recipe: Recipe) -> ExpertTask:
    for record in group:
        loaded.check_trainable(record)
    further = [
        loaded.tokenize_pair(prompt, record.target)
        for record in group
        for prompt in further_training_prompts(loaded, record, recipe.prompt_augmentations)
    ]
    return ExpertTask([loaded.tokenize_edit(record) for record in group], further)
