"""Experts per second against what the arithmetic asks: `python -m benchmarks.edit_rate [--shape demo] [--batch 1 8 32]`

A Llama of the given shape with random weights, lessons of random tokens (95 in three sequences, as the default recipe
has them), 15 steps each. Prints seconds for an expert and the arithmetic per second that this is, by `cost_model`;
with `--peak TFLOPS`, the share of it. Meant for a GPU: `--shape Llama-2-7B --device cuda --dtype bfloat16 --peak 790`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.cost_model import SHAPES, Shape, edit_flops
from benchmarks.measuring import median_seconds, show, write
from scen_cli.experts.fit import fit_experts
from scen_cli.experts.training_batch import ExpertTask
from scen_cli.model.ffn import find_layer
from scen_cli.model.loaded_base import TokenizedEdit
from scen_cli.recipe import RECIPES

SEQUENCES = ((22, 3), (31, 3), (42, 3))  # tokens, and how many of them are the target
NAMES = {shape.name: shape for shape in SHAPES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=NAMES, default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--peak", type=float, help="of the device, in TFLOP/s")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    shape = NAMES[chosen.shape]
    model = _model(shape, chosen.device, getattr(torch, chosen.dtype))
    edited = find_layer(model, shape.layer)
    # Random weights learn when they like: the recipe's steps, no more.
    recipe = RECIPES["closed-form"].model_copy(update={"extra_steps": 0})
    found = []
    for batch in chosen.batch:
        lessons = [_lesson(shape, seed) for seed in range(batch)]

        def run(lessons: list[ExpertTask] = lessons) -> object:
            return fit_experts(model, edited, lessons, recipe)  # reads the losses: waits for the device

        seconds = median_seconds(run, 3) / batch
        rate = edit_flops(shape) / seconds / 1e12
        found.append({"batch": batch, "seconds": seconds, "tflops": rate})
        if chosen.peak:
            found[-1]["share"] = rate / chosen.peak
    show(
        f"{shape.name}, {chosen.device}, {chosen.dtype}: an expert of {recipe.expert_steps} steps",
        ["batch#", "seconds#", "experts per second#", "TFLOP/s#", "of the peak#"],
        [
            [
                one["batch"],
                f"{one['seconds']:.4f}",
                f"{1 / one['seconds']:.1f}",
                f"{one['tflops']:.4f}",
                f"{100 * one['share']:.1f} %" if "share" in one else "-",
            ]
            for one in found
        ],
    )
    write(chosen.json, {"shape": shape.name, "device": chosen.device, "dtype": chosen.dtype, "seed": 0, "found": found})


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


def _lesson(shape: Shape, seed: int) -> ExpertTask:
    generator = torch.Generator().manual_seed(seed)
    samples = [
        TokenizedEdit(torch.randint(3, shape.vocabulary, (tokens,), generator=generator).tolist(), target)
        for tokens, target in SEQUENCES
    ]
    return ExpertTask(samples[:1], samples[1:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
