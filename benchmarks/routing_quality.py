"""Whose prompt is this, and is it anybody's? `python benchmarks/routing_quality.py KEYS [--edits 100 500]`

On cached keys alone (`benchmarks/routing_keys.py` writes them): no model, seconds a run. Each router scores
every prompt against every edit. The threshold is set so that 1 % of one half of the unedited prompts of the
same kind fire; all is reported on what that half never showed.

Columns: self (edits that call themselves), rephrases (that call their own edit), wrong (rephrases that call
another), then false activations on unedited prompts of the same kind, on near misses and on unrelated ones;
`at own theta`: rephrases right and same-kind false activations at the router's fixed threshold; `best wrong`: how
many rephrases have their own edit strongest at no threshold at all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.numpy import load_file

from scen_cli.cli.output import table
from scen_cli.editing.neurons import fit_neuron
from scen_cli.editing.recipe import DEMO_RATES, Recipe

FALSE_ACTIVATION = 0.01
Router = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def unit(keys: np.ndarray) -> np.ndarray:
    return keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)


def paper(steps: int, lr: float) -> Router:
    """The paper's neurons, one after the other, by the product's own code."""

    def fit(edits: np.ndarray, _guard: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        keys = torch.from_numpy(edits)
        recipe = Recipe(neuron_steps=steps, neuron_lr=lr)
        neurons = torch.stack([fit_neuron(keys[t : t + 1], keys[:t], recipe, t).neuron for t in range(len(keys))])
        return lambda queries: torch.sigmoid(torch.from_numpy(queries) @ neurons.T).numpy()

    return fit


def cosine(edits: np.ndarray, _guard: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The edit's own key as its neuron: recipe `key`."""
    return lambda queries: unit(queries) @ unit(edits).T


def whitened(shrink: float) -> Router:
    """A matched filter: keys centred and whitened by the guard's covariance, then the cosine."""

    def fit(edits: np.ndarray, guard: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        mean = guard.mean(axis=0)
        values, axes = np.linalg.eigh(np.cov(unit(guard - mean), rowvar=False))
        scale = axes / np.sqrt(values.clip(min=0) + shrink * values.max())
        filters = unit(unit(edits - mean) @ scale)
        return lambda queries: unit(unit(queries - mean) @ scale) @ filters.T

    return fit


def ridge(penalty: float) -> Router:
    """Ridge regression of one-hot targets on edits and guard, on centred keys of unit length."""

    def fit(edits: np.ndarray, guard: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        mean = guard.mean(axis=0)
        rows = np.concatenate([unit(edits - mean), unit(guard - mean)]).astype(np.float64)
        gram = rows.T @ rows + penalty * np.eye(rows.shape[1])
        weights = np.linalg.solve(gram, rows[: len(edits)].T)
        return lambda queries: unit(queries - mean) @ weights

    return fit


ROUTERS: dict[str, tuple[Router, float]] = {
    "paper, 1e-3 x 100": (paper(int(DEMO_RATES["neuron_steps"]), float(DEMO_RATES["neuron_lr"])), 0.65),
    "paper, 1e-2 x 20": (paper(20, 1e-2), 0.65),
    "paper, 1e-2 x 100": (paper(100, 1e-2), 0.65),
    "key (cosine)": (cosine, 0.8),
    "matched filter, 0.1": (whitened(0.1), 0.5),
    "matched filter, 0.01": (whitened(0.01), 0.5),
    "ridge, 1": (ridge(1.0), 0.5),
    "ridge, 0.1": (ridge(0.1), 0.5),
    "ridge, 0.01": (ridge(0.01), 0.5),
}


def measure(name: str, arrays: dict[str, np.ndarray], count: int) -> dict[str, float | str | int | None]:
    """One router on the first `count` edits. Unedited prompts of the same kind are split in three: a guard
    that routers may learn from, a part that sets the threshold, and a part that is reported."""
    router, theta = ROUTERS[name]
    edits = arrays["edits"][:count]
    mine = arrays["rephrase_of"] < count
    rephrases, owner = arrays["rephrases"][mine], arrays["rephrase_of"][mine]
    order = np.random.default_rng(0).permutation(len(arrays["same_kind"]))
    parts = np.array_split(order, 3)
    guard, calibration, fresh = (arrays["same_kind"][part] for part in parts)
    near = np.concatenate([fresh[arrays["same_kind_is_near"][parts[2]]], arrays["near"]])
    started = time.perf_counter()
    score = router(edits, guard)
    seconds = time.perf_counter() - started
    strongest = score(calibration).max(axis=1)
    chosen = float(np.quantile(strongest, 1 - FALSE_ACTIVATION))

    def fires(queries: np.ndarray, at: float) -> float | None:
        return float((score(queries).max(axis=1) > at).mean()) if len(queries) else None

    own, of_rephrases = score(edits), score(rephrases)
    best, strength = of_rephrases.argmax(axis=1), of_rephrases.max(axis=1)
    return {
        "router": name,
        "edits": count,
        "self": float(((own.argmax(axis=1) == np.arange(count)) & (own.max(axis=1) > chosen)).mean()),
        "rephrases": float(((best == owner) & (strength > chosen)).mean()),
        "wrong": float(((best != owner) & (strength > chosen)).mean()),
        "same kind": fires(fresh, chosen),
        "near": fires(near, chosen),
        "unrelated": fires(arrays["unrelated"], chosen),
        "rephrases at own theta": float(((best == owner) & (strength > theta)).mean()),
        "same kind at own theta": fires(fresh, theta),
        "best wrong": float((best != owner).mean()),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("keys", type=Path)
    parser.add_argument("--edits", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    arrays = load_file(chosen.keys)
    counts = [count for count in chosen.edits if count <= len(arrays["edits"])]
    rows = [measure(name, arrays, count) for count in counts for name in ROUTERS]
    cells = [["-" if v is None else f"{v:.3f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    Console(width=200).print(table([f"{column}#" for column in rows[0]], cells))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
