"""Measures `scen serve` under load: `python -m benchmarks.serve_load --locust LOCUST [--edits 100] [--clients 32]`

LOCUST is the command of Locust (`pip install locust`, in its own environment). Its clients ask a server that this
script starts; half of the prompts are edited. They compare every answer, and the edit that gave it, with what scen
answers directly. Then the same with a project without edits. Prints requests, errors, wrong answers, requests per
second and latencies.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.measuring import demo_editor, make_parser
from benchmarks.page import report
from scen_cli import EditRecord
from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts

PORT = 8765
CLIENTS = Path(__file__).parent / "serve_clients.py"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--locust", required=True)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for edits in (options.edits, 0):
            project, questions = Path(folder) / f"project{edits}", Path(folder) / f"questions{edits}.json"
            questions.write_text(json.dumps(_prepare(project, demo_edits()[:edits], options.edits)))
            load = _under_load(options, project, questions, Path(folder) / f"out{edits}")
            print(f"{edits} edits: the server ended with {load['exit']}")
            found.append({"edits": edits, **load})
    report("serve_load", {"clients": options.clients, "seconds": options.seconds, "found": found}, options.json)


def _prepare(project: Path, edits: list[EditRecord], count: int) -> list[dict[str, Any]]:
    """Create a project with these edits; return prompts of `count` edits and as many others, with scen's answers."""
    editor = demo_editor(project, edits)
    prompts = [text for record in demo_edits()[:count] for text in (record.prompt, *record.rephrases[:1])]
    prompts += [fact.phrasings[0] for fact in right_facts()][: len(prompts)]
    own = editor.answer(prompts)
    editor.project.close()
    answers = zip(prompts, own.texts, own.edits, strict=True)
    return [{"prompt": prompt, "text": text, "edit": edit} for prompt, text, edit in answers]


def _under_load(options: argparse.Namespace, project: Path, questions: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "scen_cli", "serve", "--dir", str(project), "--port", str(PORT), "--quiet"]
    server = subprocess.Popen(command)
    try:
        _wait_for(server)
        load = [
            options.locust,
            "-f",
            str(CLIENTS),
            "--headless",
            "--host",
            f"http://127.0.0.1:{PORT}",
            "--only-summary",
        ]
        load += ["-u", str(options.clients), "-r", str(options.clients), "-t", f"{options.seconds}s", "--csv", str(out)]
        variables = {"SCEN_QUESTIONS": str(questions), "SCEN_WRONG": f"{out}.wrong"}
        subprocess.run(load, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    finally:
        server.kill()
    with Path(f"{out}_stats.csv").open() as file:
        (total,) = [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    wrong = int(Path(f"{out}.wrong").read_text())
    return {
        "requests": int(total["Request Count"]),
        "errors": int(total["Failure Count"]) - wrong,
        "wrong": wrong,
        "per_second": round(float(total["Requests/s"]), 1),
        "p50": float(total["50%"]),
        "p95": float(total["95%"]),
        "p99": float(total["99%"]),
        "exit": code,
    }


def _wait_for(server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the server did not start")


if __name__ == "__main__":
    main()
