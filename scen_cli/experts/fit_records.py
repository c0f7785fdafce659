"""Stage 1 for records: from prompts and targets to experts. Needs a base, and nothing of a project's files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scen_cli.data.records import EditRecord
from scen_cli.experts.fit import ExpertFit, fit_experts
from scen_cli.experts.training_batch import ExpertTask
from scen_cli.model.loaded_base import LoadedBase
from scen_cli.model.prompt_augmentation import augmented_prompts
from scen_cli.model.template import Prompt
from scen_cli.recipe import Recipe

Group = list[EditRecord]  # records that share an expert; as a rule one


@dataclass(frozen=True)
class FittedExpert:
    """An expert for some records, and the seconds it took."""

    fit: ExpertFit
    seconds: float


# Trains batches of groups, one batch after another or several at a time, and gives what came of them in their order.
FitAll = Callable[[Sequence[Sequence[Group]]], Iterator[list[FittedExpert]]]


def fit(loaded: LoadedBase, groups: Sequence[Group], recipe: Recipe) -> list[FittedExpert]:
    """Train an expert for each group of records, all at once.

    Raises `UsageError` for a record that can never be trained.
    """
    started = time.perf_counter()
    lessons = []
    for records in groups:
        samples = [loaded.prepare(record) for record in records]
        ways = [
            (record, way) for record in records for way in training_prompts(loaded, record, recipe.prompt_augmentations)
        ]
        lessons.append(ExpertTask(samples, [loaded.sample(way, record.target) for record, way in ways]))
    fits = fit_experts(loaded.model, loaded.edited, lessons, recipe)
    return [FittedExpert(one, (time.perf_counter() - started) / len(groups)) for one in fits]


def training_prompts(loaded: LoadedBase, record: EditRecord, variants: int) -> list[Prompt]:
    """What an expert learns the target from beside the prompt, as far as the base's context has room for it."""
    ways = [*record.train_rephrases, *augmented_prompts(record.prompt, variants)]
    return [way for way in ways if loaded.has_room(len(loaded.sample(way, record.target).input_ids))]
