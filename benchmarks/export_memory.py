"""Measures the peak memory of each kind of export: `python -m benchmarks.export_memory [--edits 1000] [--json FILE]`

Uses a Llama of 0.9 B parameters in bfloat16 with random weights, and a project with random keys, neurons and low-rank
experts. Each kind of export runs in its own process. Prints the peak above idle, in multiples of the base's size; idle
is the process with torch, transformers and scen imported, before the base is loaded.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.measuring import make_parser, run_module
from benchmarks.page import report
from benchmarks.synthetic import RANK
from scen_cli import EditRecord, PatchedModel, Project, load_base, new_project
from scen_cli.data.records import SourceLine
from scen_cli.model.known_bases import DEMO
from scen_cli.project.edit_files import EditTensors, LowRankArrays
from scen_cli.project.new_edits import TrainedEdit, TrainingStats

SHAPE = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 17, "num_attention_heads": 16}
LAYER = 8
KINDS = ("checkpoint", "float16", "patch", "peft", "edit")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--one", nargs=2, help="run only this kind of export of this project, and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_export(options.one[0], Path(options.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        base, project = Path(folder) / "base", Path(folder) / "project"
        size = _make_base(base)
        _make_project(project, base, options.edits)
        found = []
        for kind in KINDS:
            row = run_module("benchmarks.export_memory", "--one", kind, project)
            found.append({"kind": kind, **row, "of_base": (row["peak"] - row["idle"]) / size})
    report("export_memory", {"base_bytes": size, "edits": options.edits, "found": found}, options.json)


def _make_base(folder: Path) -> int:
    """Write a base with random weights; return the size of its weights in bytes."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=2048, initializer_range=0.05, **ends, **SHAPE)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _make_project(folder: Path, base_folder: Path, edits: int) -> None:
    base, rng = load_base(str(base_folder), device="cpu"), np.random.default_rng(0)
    changes: dict[str, str | float | None] = {"expert": "low-rank", "rank": RANK}
    project = new_project(folder, str(base_folder), LAYER, recipe="key", changes=changes, base=base)
    d, h = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    project.ledger.db.execute("pragma synchronous = off")  # a temporary project need not survive a power cut
    with project.writing():
        for number in range(edits):
            record = EditRecord(prompt=f"Question {number}?", target=f"answer {number}")
            arrays = (rng.standard_normal(shape, np.float32) / 100 for shape in ((RANK, h), (d, RANK), (2, h)))
            a, b, (neuron, key) = arrays
            trained = TrainedEdit(record, SourceLine("synthetic", number), True, 1.0)
            project.commit([trained], TrainingStats(0, 0.0), EditTensors(LowRankArrays(a, b), neuron, key))
    project.close()


class PeakMemory:
    """The peak resident memory of this process, including mapped pages of files; a thread samples it."""

    def __init__(self) -> None:
        self._process, self.peak = psutil.Process(), 0
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> int:
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.005)


def _export(kind: str, project: Path) -> dict[str, Any]:
    from scen_cli.export.peft_folder import export_adapters
    from scen_cli.export.transformers_folder import export_checkpoint

    memory = PeakMemory()
    idle = memory.now()
    patched = PatchedModel(Project(project), "cpu")
    patched.patch()
    loaded, started = memory.now(), time.perf_counter()
    out = project.parent / f"out-{os.getpid()}"
    if kind == "peft":
        export_adapters(patched, out)
    elif kind == "edit":
        _one_plain(patched, out)
    else:
        dtype = kind if kind == "float16" else None
        export_checkpoint(patched, out, patch_only=kind == "patch", dtype=dtype)
    return {"idle": idle, "loaded": loaded, "peak": memory.peak, "seconds": time.perf_counter() - started}


def _one_plain(patched: PatchedModel, out: Path) -> None:
    """Write a plain checkpoint as `export_merged` does, without scoring: a random base has no answers to score."""
    from scen_cli.export.transformers_folder import MAX_SHARD_SIZE, save_weights

    name = f"{patched.edited.module_name}.weight"
    save_weights(patched, out, {name: patched.edited.projection.weight + 1}, None, MAX_SHARD_SIZE)


if __name__ == "__main__":
    main()
