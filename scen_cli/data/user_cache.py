"""Results that take long and depend on their inputs alone, stored outside projects.

They are in the user's cache folder, or in the folder that `SCEN_CACHE` names. It can be removed at any time: the
results are then computed again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from scen_cli.data.write_files import digest, write_json

KINDS = (
    "answers",
    "gguf",
    "sampled-prompts",
)  # the subfolders that are scen's; `SCEN_CACHE` may name a folder with others


def cache_folder() -> Path:
    """The folder of everything that is cached."""
    return Path(os.environ.get("SCEN_CACHE") or user_cache_path("scen", appauthor=False))


def cached_texts(kind: str, inputs: Any, compute: Callable[[], list[str]]) -> list[str]:
    """A list of texts that depends on `inputs` alone: from the cache, else computed and stored.

    Args:
        kind: What the texts are: the subfolder of the cache, one of `KINDS`.
        inputs: Plain data that determines the result.
        compute: Called if the cache has no readable entry.
    """
    path = cache_folder() / kind / f"{digest(inputs)}.json"
    with suppress(OSError, ValueError):
        cached = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(cached, list) and all(isinstance(text, str) for text in cached):
            return cached
    texts = compute()
    with suppress(OSError):  # on a full or read-only disk the next call computes them again
        write_json(path, texts, indent=None)
    return texts


@dataclass(frozen=True)
class CacheEntry:
    """Something in the cache: its kind (a subfolder), its name, and its bytes."""

    kind: str
    name: str
    size: int


def cache_entries() -> list[CacheEntry]:
    """Everything that scen has cached, by kind and name."""
    folders = [path for kind in KINDS if (path := cache_folder() / kind).is_dir()]
    return [
        CacheEntry(folder.name, entry.name, _size(entry))
        for folder in folders
        for entry in sorted(folder.iterdir())
        if entry.suffix != ".lock"
    ]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def clear_cache() -> None:
    """Remove everything that `cache_entries` lists."""
    for entry in cache_entries():
        path = cache_folder() / entry.kind / entry.name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
