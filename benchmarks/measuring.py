"""What the benchmarks share: who measured, how much memory, a table, a file."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from scen_cli import Editor, EditRecord
from scen_cli.cli.output import table
from scen_cli.data.records import SourceLine


def machine() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
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
    """The most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def median_seconds(run: Callable[[], object], times: int) -> float:
    """The median of so many runs, after one that is not counted."""
    run()
    took = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def edit_in_order(editor: Editor, records: Sequence[EditRecord]) -> None:
    """Make the demo suite's edits, one by one."""
    with editor.project.writing():
        for place, record in enumerate(records, start=1):
            editor.edit(record, SourceLine("suite demo", place))
        editor.project.merge()


def show(title: str, columns: list[str], rows: list[list[object]]) -> None:
    print(title)
    Console(highlight=False, width=140).print(table(columns, rows))


def write(path: Path | None, found: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**machine(), **found}, indent=1) + "\n", encoding="utf-8")
