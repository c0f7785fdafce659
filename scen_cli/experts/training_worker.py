"""`TrainingWorker`: trains experts in another process. `process_pool` and `ray_pool` run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from scen_cli.experts.fit_records import Group, fit
from scen_cli.experts.serialize import experts_to_bytes
from scen_cli.model.loaded_base import LoadedBase
from scen_cli.recipe import stored_recipe


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
