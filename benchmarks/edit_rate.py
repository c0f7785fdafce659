"""Measures experts per second and their FLOP/s: `python -m benchmarks.edit_rate [--shape demo] [--batch 1 8 32]`

Uses a Llama of the given shape with random weights, and tasks of random tokens (95 in three sequences, as in the
default recipe) with 15 steps each; nothing is written to a project. FLOPs come from `cost_model.py`; `--peak TFLOPS`
prints the share of the device's peak. Meant for a GPU: `--shape Llama-2-7B --device cuda --dtype bfloat16 --peak 790`.
"""

from __future__ import annotations

from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.cost_model import SHAPES, Shape, edit_flops
from benchmarks.measuring import make_parser, median_seconds
from benchmarks.page import report
from scen_cli.experts.fit import ExpertTask, fit_experts
from scen_cli.model.ffn import find_layer
from scen_cli.model.loaded_base import TokenizedEdit
from scen_cli.recipe import RECIPES

SEQUENCES = ((22, 3), (31, 3), (42, 3))  # tokens of a sequence, and how many of them are the target
NAMES = {shape.name: shape for shape in SHAPES}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--shape", choices=NAMES, default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--peak", type=float, help="peak of the device, in TFLOP/s")
    options = parser.parse_args()
    shape = NAMES[options.shape]
    model = _model(shape, options.device, getattr(torch, options.dtype))
    edited = find_layer(model, shape.layer)
    # Extra steps depend on what random weights learn: leave them out.
    recipe = RECIPES["closed-form"].model_copy(update={"extra_steps": 0})
    found = []
    for batch in options.batch:
        tasks = [_task(shape, seed) for seed in range(batch)]
        # `fit_experts` reads the losses: it waits for the device.
        seconds = median_seconds(partial(fit_experts, model, edited, tasks, recipe), 3) / batch
        row = {"batch": batch, "seconds": seconds, "tflops": edit_flops(shape) / seconds / 1e12}
        if options.peak:
            row["share"] = row["tflops"] / options.peak
            print(f"batch {batch}: {100 * row['share']:.1f} % of the peak")
        found.append(row)
    metadata = {"shape": shape.name, "device": options.device, "dtype": options.dtype, "seed": 0}
    report("edit_rate", {**metadata, "found": found}, options.json)


def _model(shape: Shape, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    heads = max(1, shape.d // 128)
    config = LlamaConfig(
        hidden_size=shape.d,
        intermediate_size=shape.h,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads * shape.kv // shape.d),
        vocab_size=shape.vocabulary,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False).eval()


def _task(shape: Shape, seed: int) -> ExpertTask:
    generator = torch.Generator().manual_seed(seed)
    samples = [
        TokenizedEdit(torch.randint(3, shape.vocabulary, (tokens,), generator=generator).tolist(), target)
        for tokens, target in SEQUENCES
    ]
    return ExpertTask(samples[:1], samples[1:])


if __name__ == "__main__":
    main()
