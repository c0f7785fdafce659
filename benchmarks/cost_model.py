"""Computes the arithmetic and the bytes of edits and tokens from model shapes: `python -m benchmarks.cost_model`

Measures nothing. A matrix product counts two FLOPs per weight and token. Attention over earlier tokens (the prompts
are short) and elementwise operations are left out. An edit of the default recipe has three sequences: one pass for the
prefix, then a forward and a backward pass of the layers above it for every step. The authors' procedure runs the whole
model for every expert step, and for every earlier edit at each of 20 neuron steps. Prints the table.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measuring import make_parser, markdown
from scen_cli.project.edit_files import EditTensors, LowRankArrays, write_edit
from scen_cli.recipe import RECIPES


@dataclass(frozen=True)
class Shape:
    """A Llama: number of layers, d, h, width of keys and values, vocabulary size, edited layer."""

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
    """FLOPs of one edit of the default recipe: keys, prefix, and steps, which run only what follows the projection."""
    steps = RECIPES["closed-form"].expert_steps
    prefix = 2 * (shape.layer + 1) * shape.per_layer * (SEQUENCES + PROMPT)
    above = (shape.layers - shape.layer - 1) * shape.per_layer * SEQUENCES + shape.head * TARGET
    low_rank = RANK * (shape.d + shape.h) * SEQUENCES
    return prefix + 2 * steps * (2 * above + 3 * low_rank)


def authors_flops(shape: Shape, t: int) -> float:
    """FLOPs of edit t in the authors' procedure: expert steps, and neuron steps that run all t prompts."""
    forward = 2 * (shape.layers * shape.per_layer + shape.head) * PROMPT
    backward = 2 * ((shape.layers - shape.layer) * shape.per_layer + shape.head + shape.d * shape.h) * PROMPT
    return AUTHORS_STEPS * (forward + backward) + AUTHORS_NEURON_STEPS * t * forward


def bytes_per_edit(shape: Shape, rank: int) -> int:
    """Size of an edit file, by writing one: float16 A and B, float32 key and neuron."""
    key = np.ones(shape.h, np.float32)
    expert = LowRankArrays(np.ones((rank, shape.h), np.float16), np.ones((shape.d, rank), np.float16))
    with tempfile.TemporaryDirectory() as folder:
        return write_edit(Path(folder), 1, EditTensors(expert, key, key), {}).size


def routing_flops(shape: Shape, edits: int, axes: int = 500) -> float:
    """FLOPs of routing one prompt: whitening and one product."""
    return 2 * shape.h * (edits + 2 * axes)


def token_flops(shape: Shape) -> tuple[float, float]:
    """FLOPs of a token in the base, and of the expert on top."""
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


def table() -> str:
    """One line for each shape; the authors' procedure as a multiple of the product."""
    rows = []
    for shape in SHAPES:
        base, expert = token_flops(shape)
        rows.append(
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
    return markdown(COLUMNS, rows)


def main() -> None:
    make_parser(__doc__).parse_args()
    print(f"an edit: {SEQUENCES} tokens in three sequences; a prompt: {PROMPT} tokens; rank {RANK}\n")
    print(table())


if __name__ == "__main__":
    main()
