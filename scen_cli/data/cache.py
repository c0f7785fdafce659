"""Results kept outside projects, because they take long and depend on their inputs alone.

They live in the user's cache folder, or in the folder that `SCEN_CACHE` names. Removing it loses time, nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from scen_cli.data.write_records import digest


def cache_folder() -> Path:
    """The folder of everything that is cached."""
    return Path(os.environ.get("SCEN_CACHE") or user_cache_path("scen", appauthor=False))


def cached_texts(kind: str, inputs: Any, compute: Callable[[], list[str]]) -> list[str]:
    """A list of texts that depends on `inputs` alone: read from the cache, else computed and kept.

    Args:
        kind: What the texts are: the subfolder of the cache.
        inputs: Plain data that decides the result.
        compute: Called if the cache has no such list, or none that can be read.
    """
    path = cache_folder() / kind / f"{digest(inputs)}.json"
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, list) and all(isinstance(text, str) for text in found):
            return found
    texts = compute()
    with suppress(OSError):  # a full or read-only disk costs time at the next call
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        draft.write_text(json.dumps(texts), encoding="utf-8")
        draft.replace(path)
    return texts
