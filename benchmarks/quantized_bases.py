"""Edits on a base in 8 and in 4 bits beside the same edits on the whole one:
`python -m benchmarks.quantized_bases [--edits 100] [--json FILE]`

The demo base, with its weights in float32 to begin with. Besides the paper's figures: how many of the edits' prompts,
their rephrases and the right facts are routed and answered alone as they are in a batch, since LLM.int8() chooses which
columns it computes in 16 bits by all that is in the batch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.measuring import edit_in_order, show, write
from scen_cli import Editor, new_project
from scen_cli.data.suites import load_suite
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.gates import PAPERS
from scen_cli.model.base import load_base
from scen_cli.model.quantization import QUANTIZED

FIGURES = PAPERS[:3]


def measure(quantize: str | None, edits: int) -> dict[str, Any]:
    suite = load_suite("demo")
    base = load_base("demo", device="cpu", quantize=quantize)
    with tempfile.TemporaryDirectory() as folder:
        editor = Editor(new_project(Path(folder) / "project", "demo", quantize=quantize, base=base), base=base)
        started = time.perf_counter()
        edit_in_order(editor, suite.edits[:edits])
        seconds = (time.perf_counter() - started) / edits
        figures = evaluate(editor, suite, quick=True).figures
        prompts = [text for one in suite.edits[:edits] for text in (one.prompt, *one.rephrases)] + suite.locality
        together, alone = editor.answer(prompts), [editor.answer([prompt]) for prompt in prompts]
    return {
        "base": quantize or "float32",
        "bytes": sum(one.numel() * one.element_size() for one in base.model.parameters()),
        "seconds": seconds,
        **{name: figures[name].patched.value for name in FIGURES},
        "prompts": len(prompts),
        "routes": sum(one.edits[0] == edit for one, edit in zip(alone, together.edits, strict=True)),
        "texts": sum(one.texts[0] == text for one, text in zip(alone, together.texts, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    found = [measure(quantize, chosen.edits) for quantize in (None, *QUANTIZED)]
    columns = ["base", *(f"{name}#" for name in FIGURES), "MB#", "s/edit#", "routes alone as together#", "texts#"]
    rows: list[list[object]] = [
        [
            one["base"],
            *(f"{100 * one[name]:.1f}" for name in FIGURES),
            f"{one['bytes'] / 1e6:.2f}",
            f"{one['seconds']:.3f}",
            f"{one['routes']}/{one['prompts']}",
            f"{one['texts']}/{one['prompts']}",
        ]
        for one in found
    ]
    show("", columns, rows)
    write(chosen.json, {"edits": chosen.edits, "found": found})


if __name__ == "__main__":
    main()
