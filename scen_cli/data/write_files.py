"""Writes records and other data, and caches results that take long. A file appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonlines
from platformdirs import user_cache_path

from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError


def write_records(path: Path, records: Iterable[EditRecord]) -> None:
    """Write records as JSON lines. Raises `UsageError` if the file exists."""
    if path.exists():
        raise UsageError(f"`{path}` exists already", hint="choose another name")
    write_lines(path, (record.as_json() for record in records))


def write_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines under a temporary name, then rename the file."""
    draft = _draft(path)
    with jsonlines.open(draft, "w") as lines:
        lines.write_all(items)
    draft.replace(path)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write one JSON value under a temporary name, then rename the file."""
    draft = _draft(path)
    draft.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    draft.replace(path)


def digest(content: Any) -> str:
    """Hex sha256 of plain data, by its JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _draft(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def cache_folder() -> Path:
    """The folder of everything that is cached."""
    return Path(os.environ.get("SCEN_CACHE") or user_cache_path("scen", appauthor=False))


def cached_texts(kind: str, inputs: Any, compute: Callable[[], list[str]]) -> list[str]:
    """A list of texts that depends on `inputs` alone: from the cache, else computed and stored.

    Args:
        kind: What the texts are: the subfolder of the cache.
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
    """Everything in the cache, by kind and name."""
    folders = [path for path in sorted(cache_folder().glob("*")) if path.is_dir()]
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
