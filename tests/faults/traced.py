"""Commits one edit without a model, for a system-call tracer: `python -m tests.faults.traced FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from scen_cli.project.project import Project
from tests.project.test_project import SETTINGS, commit

if __name__ == "__main__":
    project = Project.create(Path(sys.argv[1]), SETTINGS, theta=0.65, author="tester")
    print("created", file=sys.stderr)
    with project.writing():
        commit(project, "Who?")
        project.merge()
