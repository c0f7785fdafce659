"""What an edit and a token cost, from shapes: `python -m benchmarks.cost_model`

FLOPs are counted as two for each weight and token of a matrix product; attention's products over earlier tokens
(short prompts here) and elementwise work are left out. An edit of the default recipe: three sequences, their prefix
once, and so many steps above it, each a forward and a backward for what enters the layers; the authors' procedure
re-runs the whole model for every step, and for every earlier edit at each of 20 neuron steps.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measuring import show
from scen_cli.project.tensor_files import EditTensors, LowRankArrays, write_edit
from scen_cli.recipe import RECIPES


@dataclass(frozen=True)
class Shape:
    """A Llama: layers, d, h, width of keys and values, vocabulary; the edited layer; bytes of a weight."""

    name: str
    layers: int
    d: int
    h: int
    kv: int
    vocabulary: int
    layer: int

    @property
    def per_layer(self) -> int:
        return 2 * self.d * self.d + 2 * self.d * self.kv + 3 * self.d * self.h

    @property
    def head(self) -> int:
        return self.d * self.vocabulary


SHAPES = [
    Shape("demo", 4, 96, 768, 96, 800, 2),
    Shape("Llama-2-7B", 32, 4096, 11008, 4096, 32000, 20),
    Shape("Llama-2-70B", 80, 8192, 28672, 1024, 32000, 50),
]
PROMPT, SEQUENCES, TARGET, RANK, AUTHORS_STEPS, AUTHORS_NEURON_STEPS = 20, 95, 9, 16, 10, 20


def edit_flops(shape: Shape) -> float:
    """One edit of the default recipe: keys, prefix, steps (no products below the projection stand in a step)."""
    steps = RECIPES["closed-form"].expert_steps
    prefix = 2 * (shape.layer + 1) * shape.per_layer * (SEQUENCES + PROMPT)
    above = (shape.layers - shape.layer - 1) * shape.per_layer * SEQUENCES + shape.head * TARGET
    low_rank = RANK * (shape.d + shape.h) * SEQUENCES
    return prefix + 2 * steps * (2 * above + 3 * low_rank)


def authors_flops(shape: Shape, t: int) -> float:
    """The authors' procedure for edit t: expert steps through the whole model, neuron steps through it for all t."""
    forward = 2 * (shape.layers * shape.per_layer + shape.head) * PROMPT
    backward = 2 * ((shape.layers - shape.layer) * shape.per_layer + shape.head + shape.d * shape.h) * PROMPT
    return AUTHORS_STEPS * (forward + backward) + AUTHORS_NEURON_STEPS * t * forward


def bytes_per_edit(shape: Shape, rank: int) -> int:
    """Of its file, by writing one: float16 A and B, float32 key and neuron."""
    key = np.ones(shape.h, np.float32)
    expert = LowRankArrays(np.ones((rank, shape.h), np.float16), np.ones((shape.d, rank), np.float16))
    with tempfile.TemporaryDirectory() as folder:
        return write_edit(Path(folder), 1, EditTensors(expert, key, key)).size


def routing_flops(shape: Shape, edits: int, axes: int = 500) -> float:
    """Once per prompt: whitening and one product."""
    return 2 * shape.h * (edits + 2 * axes)


def token_flops(shape: Shape) -> tuple[float, float]:
    """A token of the base, and what its expert adds."""
    return 2 * (shape.layers * shape.per_layer + shape.head), 2 * RANK * (shape.d + shape.h)


COLUMNS = [
    "base",
    "GFLOP per edit",
    "the authors', t = 1",
    "t = 200",
    "kB at rank 4",
    "kB at rank 8",
    f"kB at rank {RANK}",
    "kB full, float32",
    "GFLOP per token",
    "an expert adds",
    "routing among 1,000 adds to a prefill",
]


def rows() -> list[list[str]]:
    """A line for each shape; the authors' procedure as a multiple of the product."""
    made = []
    for shape in SHAPES:
        base, expert = token_flops(shape)
        made.append(
            [
                f"{shape.name} (l = {shape.layer})",
                f"{edit_flops(shape) / 1e9:,.1f}",
                *(f"{authors_flops(shape, t) / edit_flops(shape):,.1f} times" for t in (1, 200)),
                *(f"{bytes_per_edit(shape, rank) / 1e3:,.1f}" for rank in (4, 8, RANK)),
                f"{(shape.d + 2) * shape.h * 4 / 1e3:,.1f}",
                f"{base / 1e9:,.3f}",
                f"{100 * expert / base:.3f} %",
                f"{100 * routing_flops(shape, 1000) / (base * PROMPT):.3f} %",
            ]
        )
    return made


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    title = f"an edit: {SEQUENCES} tokens in three sequences; a prompt: {PROMPT} tokens; rank {RANK}"
    show(title, [f"{name}#" for name in COLUMNS], [list(row) for row in rows()])


if __name__ == "__main__":
    main()
