"""What can be told of a checkpoint's folder before it is loaded: that it cannot be, or must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from scen_cli.errors import UsageError

INDEX = "model.safetensors.index.json"
_PACKED = 8  # values that a quantised checkpoint may keep in one


def check_files(name: str, folder: Path) -> None:
    """Raise `UsageError` for weights that lie outside of the folder, or a config of absurd sizes: they would be
    allocated before they are compared with the weights.

    A folder that says little of itself passes: transformers will say what it lacks.
    """
    for file in folder.glob("*.safetensors"):
        if not file.is_file():  # a pipe would make its reader wait
            raise UsageError(f"`{name}` cannot be loaded: `{file.name}` is not a file")
    places = _read(folder / INDEX).get("weight_map")
    for place in set(places.values()) if isinstance(places, dict) else ():
        if not isinstance(place, str) or place != Path(place).name:
            raise UsageError(f"`{name}` cannot be loaded: its index names weights outside of its folder: {place!r}")
    config = _read(folder / "config.json")
    inner = config.get("text_config")
    tensors, values = _contents(name, folder)
    for sizes in (config, inner if isinstance(inner, dict) else {}):
        layers, width = (
            _size(sizes, *names) for names in (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"))
        )
        others = [_size(sizes, "vocab_size"), _size(sizes, "intermediate_size", "n_inner")]
        if layers > tensors or any(width * other > _PACKED * values for other in others):
            raise UsageError(f"`{name}` cannot be loaded: its config tells of far more weights than there are")


def needs_code(folder: Path) -> bool:
    """Whether the folder has code of its own to be loaded with."""
    return any("auto_map" in _read(folder / file) for file in ("config.json", "tokenizer_config.json"))


def _contents(name: str, folder: Path) -> tuple[int, int]:
    """How many tensors there are in the folder, and how many values in them."""
    tensors = values = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="np") as weights:
                for tensor in weights.keys():  # noqa: SIM118 (it has no other way to go through them)
                    size = 1
                    for length in weights.get_slice(tensor).get_shape():
                        size *= length
                    tensors, values = tensors + 1, values + size
        except (OSError, SafetensorError) as error:
            raise UsageError(f"`{name}` cannot be loaded: `{file.name}`: {error}") from error
    return tensors, values


def _size(sizes: dict[str, Any], *names: str) -> int:
    """The first of these that is a number; 1 if none is."""
    return next((sizes[name] for name in names if isinstance(sizes.get(name), int)), 1)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
