"""Times the commands that a newcomer runs on SmolLM2: `python -m benchmarks.command_times [--json FILE]`

Each command is a process of its own whose output goes to a pipe, in a new project, with nothing in the cache but the
converted GGUF (which the first command makes). Prints seconds, CPU seconds, peak memory, and the longest time without
a byte of output. One thread, unless `OMP_NUM_THREADS` says otherwise.
"""

from __future__ import annotations

import os
import selectors
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import make_parser
from benchmarks.page import report

COMMANDS = (
    "init --model smollm2",
    "edit --suite real-facts --first 10",
    "ask 'Who created the game Tetris?'",
    "ask 'What is the capital of France?'",
    "eval --suite real-facts --quick",
    "eval --suite real-facts",
    "eval --suite real-facts",
    "calibrate",
    "export --out export",
    "verify --deep",
    "verify --behaviour",
    "revert 5",
)


def main() -> None:
    options = make_parser(__doc__).parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "SCEN_CACHE": f"{folder}/cache"}
        for command in COMMANDS:
            found.append({"command": command, **_run(command, Path(folder), environment)})
            print(found[-1], flush=True)
    report("command_times", {"found": found}, options.json)


def _run(command: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    started = last = time.monotonic()
    silence = 0.0
    process = subprocess.Popen(
        [sys.executable, "-m", "scen_cli", *shlex.split(command)],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _events in selector.select():
                content = os.read(key.fd, 1 << 16)
                silence, last = max(silence, time.monotonic() - last), time.monotonic()
                if not content:
                    selector.unregister(key.fileobj)
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "code": process.returncode,
        "seconds": time.monotonic() - started,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
        "silence": silence,
    }


if __name__ == "__main__":
    main()
