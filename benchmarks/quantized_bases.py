"""Scores demo edits on the float32, 8-bit and 4-bit base: `python -m benchmarks.quantized_bases [--edits 100]`

Besides the paper's metrics: how many prompts (edits, rephrases, facts that the base answers rightly) get the same route
and the same answer alone as in a batch. They can differ because LLM.int8() chooses by the whole batch which columns it
computes in 16 bits. Prints a table; `--json FILE` writes it with the seconds per edit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers.utils import logging

from benchmarks.measuring import demo_editor, make_edits, make_parser, seconds_of
from benchmarks.page import METRICS, report
from scen_cli import evaluate, load_suite
from scen_cli.model.base import load_base
from scen_cli.model.quantization import QUANTIZED


def measure(quantize: str | None, edits: int) -> dict[str, Any]:
    suite = load_suite("demo")
    base = load_base("demo", device="cpu", quantize=quantize)
    with tempfile.TemporaryDirectory() as folder:
        editor = demo_editor(Path(folder) / "project", [], base, quantize=quantize)
        seconds = seconds_of(lambda: make_edits(editor, suite.edits[:edits])) / edits
        figures = evaluate(editor, suite, quick=True).figures
        prompts = [text for edit in suite.edits[:edits] for text in (edit.prompt, *edit.rephrases)] + suite.locality
        together, alone = editor.answer(prompts), [editor.answer([prompt]) for prompt in prompts]
    return {
        "base": quantize or "float32",
        "bytes": sum(parameter.numel() * parameter.element_size() for parameter in base.model.parameters()),
        "seconds": seconds,
        **{name: figures[name].patched.value for name in METRICS},
        "prompts": len(prompts),
        "routes": sum(answer.edits[0] == edit for answer, edit in zip(alone, together.edits, strict=True)),
        "texts": sum(answer.texts[0] == text for answer, text in zip(alone, together.texts, strict=True)),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--edits", type=int, default=100)
    options = parser.parse_args()
    logging.disable_progress_bar()
    found = [measure(quantize, options.edits) for quantize in (None, *QUANTIZED)]
    report("quantized_bases", {"edits": options.edits, "found": found}, options.json)


if __name__ == "__main__":
    main()
