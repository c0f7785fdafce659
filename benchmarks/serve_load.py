"""`scen serve` under load: `python -m benchmarks.serve_load --locust LOCUST [--edits 100] [--clients 32]`

Locust (`pip install locust`, in an environment of its own; LOCUST is its command) asks the server that is started here,
half of the prompts edited, and checks each answer and the edit that gave it against what scen answers by itself. The
same then for the server of a project without edits, with the base's answers.
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

import torch

from benchmarks.measuring import show, write
from scen_cli import Editor, EditRecord, new_project
from scen_cli.data.suites import demo_edits
from scen_cli.demo.facts import right_facts

PORT = 8765
CLIENTS = Path(__file__).parent / "serve_clients.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locust", required=True)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for edits in (chosen.edits, 0):
            project, questions = Path(folder) / f"project{edits}", Path(folder) / f"questions{edits}.json"
            questions.write_text(json.dumps(_prepare(project, demo_edits()[:edits], chosen.edits)))
            load = _under_load(chosen, project, questions, Path(folder) / f"out{edits}")
            found.append({"edits": edits, **load})
    columns = ["edits#", "requests#", "errors#", "wrong#", "per second#", "p50 ms#", "p95 ms#", "p99 ms#", "exit#"]
    names = ("edits", "requests", "errors", "wrong", "per_second", "p50", "p95", "p99", "exit")
    show(f"{chosen.clients} clients, {chosen.seconds} s", columns, [[one[name] for name in names] for one in found])
    write(chosen.json, {"clients": chosen.clients, "seconds": chosen.seconds, "found": found})


def _prepare(project: Path, edits: list[EditRecord], count: int) -> list[dict[str, Any]]:
    """A project with these edits, and as many of their questions as of others, with scen's own answers."""
    editor = Editor(new_project(project, "demo", device="cpu"), "cpu")
    with editor.project.writing():
        for record in edits:
            editor.edit(record)
        editor.project.merge()
    asked = [text for record in demo_edits()[:count] for text in (record.prompt, *record.rephrases[:1])]
    asked += [fact.phrasings[0] for fact in right_facts()][: len(asked)]
    own = editor.answer(asked)
    editor.project.close()
    told = zip(asked, own.texts, own.edits, strict=True)
    return [{"prompt": prompt, "text": text, "edit": edit} for prompt, text, edit in told]


def _under_load(chosen: argparse.Namespace, project: Path, questions: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "scen_cli", "serve", "--dir", str(project), "--port", str(PORT), "--quiet"]
    server = subprocess.Popen(command)
    try:
        _wait_for(server)
        load = [chosen.locust, "-f", str(CLIENTS), "--headless", "--host", f"http://127.0.0.1:{PORT}", "--only-summary"]
        load += ["-u", str(chosen.clients), "-r", str(chosen.clients), "-t", f"{chosen.seconds}s", "--csv", str(out)]
        told = {"SCEN_QUESTIONS": str(questions), "SCEN_WRONG": f"{out}.wrong"}
        subprocess.run(load, env={**os.environ, **told}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
