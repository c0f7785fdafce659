"""What a worker is, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from scen_cli.experts.fit_records import Group, fit
from scen_cli.experts.serialize import packed
from scen_cli.model.loaded_base import LoadedBase
from scen_cli.recipe import stored_recipe


class TrainingWorker:
    """A base of its own, loaded with the first batch, and a project's recipe. It knows the project's
    settings, not its folder: the parent alone writes."""

    def __init__(self, settings: Mapping[str, Any], device: str, threads: int) -> None:
        """As many threads as the parent has: results depend on them in their last digits."""
        self._settings, self._device, self._threads = settings, device, threads

    @cached_property
    def _loaded(self) -> LoadedBase:
        torch.set_num_threads(self._threads)
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        return LoadedBase(self._settings, self._device)

    def fit(self, groups: Sequence[Group]) -> bytes:
        """Experts of a batch, packed. Raises `UsageError` if the base is not here as the project knows it."""
        return packed(fit(self._loaded, groups, stored_recipe(dict(self._settings))))

    def is_there(self) -> None:
        """Comes back once there is a worker to answer."""
