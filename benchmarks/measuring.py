"""Helpers that the benchmarks share: options, the machine, memory, timing, a demo project with edits, Markdown."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from scen_cli import Base, Editor, EditRecord, load_base, new_project
from scen_cli.data.records import SourceLine


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the script's docstring as its help and the option `--json FILE`; uses one thread from here on."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser


def machine() -> dict[str, Any]:
    """Date, processor, threads, GPU and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": device,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "scen-cli")},
    }


def peak_megabytes() -> float:
    """The peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def median_seconds(run: Callable[[], object], times: int) -> float:
    """The median of `times` runs, after one warm-up run."""
    run()
    return statistics.median(seconds_of(run) for _ in range(times))


def run_module(module: str, *arguments: object) -> Any:
    """Run `python -m MODULE ARGUMENTS` in its own process and return the JSON that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def demo_editor(folder: Path, records: Sequence[EditRecord], base: Base | None = None, **options: Any) -> Editor:
    """A new project on the demo base (`options` are those of `new_project`), with these edits made in order."""
    base = base or load_base("demo", device="cpu")
    editor = Editor(new_project(folder, "demo", base=base, **options), base=base)
    make_edits(editor, records)
    return editor


def make_edits(editor: Editor, records: Sequence[EditRecord], first: int = 1) -> None:
    """Make edits of the demo suite in order; `first` is the position of the first record in the suite."""
    with editor.project.writing():
        for position, record in enumerate(records, start=first):
            editor.edit(record, SourceLine("suite demo", position))


def markdown(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(path: Path | None, results: dict[str, Any]) -> None:
    """Write results and machine to a JSON file, if a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**machine(), **results}, indent=1) + "\n", encoding="utf-8")
