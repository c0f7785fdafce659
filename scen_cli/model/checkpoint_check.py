"""Check a checkpoint's folder before it is loaded."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from scen_cli.errors import UsageError

INDEX = "model.safetensors.index.json"
_PACKED = 8  # a quantised checkpoint may pack this many values into one


def check_files(name: str, folder: Path) -> None:
    """Refuse a checkpoint whose index points outside its folder, or whose config claims far more weights than it has.

    transformers would allocate the claimed sizes before it compares them with the weights. What else is missing,
    transformers itself reports.

    Raises:
        UsageError: The checkpoint is refused.
    """
    for file in folder.glob("*.safetensors"):
        if not file.is_file():  # reading a pipe would block
            raise UsageError(f"`{name}` cannot be loaded: `{file.name}` is not a file")
    weight_map = _read(folder / INDEX).get("weight_map")
    for file_name in set(weight_map.values()) if isinstance(weight_map, dict) else ():
        if not isinstance(file_name, str) or file_name != Path(file_name).name:
            raise UsageError(f"`{name}` cannot be loaded: its index names weights outside its folder: {file_name!r}")
    config = _read(folder / "config.json")
    text_config = config.get("text_config")
    tensors, values = _count_weights(name, folder)
    for sizes in (config, text_config if isinstance(text_config, dict) else {}):
        layers, width = _size(sizes, "num_hidden_layers", "n_layer"), _size(sizes, "hidden_size", "n_embd")
        others = [_size(sizes, "vocab_size"), _size(sizes, "intermediate_size", "n_inner")]
        if layers > tensors or any(width * other > _PACKED * values for other in others):
            raise UsageError(f"`{name}` cannot be loaded: its config claims far more weights than there are")


def needs_code(folder: Path) -> bool:
    """Whether the checkpoint asks to be loaded with code of its own."""
    return any("auto_map" in _read(folder / file) for file in ("config.json", "tokenizer_config.json"))


def _count_weights(name: str, folder: Path) -> tuple[int, int]:
    """The number of tensors in the folder, and the number of their values."""
    shapes: list[list[int]] = []
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="np") as weights:
                shapes += [weights.get_slice(tensor).get_shape() for tensor in weights.keys()]  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UsageError(f"`{name}` cannot be loaded: `{file.name}`: {error}") from error
    return len(shapes), sum(map(prod, shapes))


def _size(sizes: dict[str, Any], *names: str) -> int:
    """The first of these settings that is a number; 1 if none is."""
    return next((sizes[name] for name in names if isinstance(sizes.get(name), int)), 1)


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
