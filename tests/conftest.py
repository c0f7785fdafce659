"""Shared fixtures: one demo base per session, tiny random checkpoints, projects in fresh folders.

`torch` is imported once, by whichever test needs it first.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scen_cli.data.records import EditRecord, SourceLine

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may reach a hub
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# glibc would give torch's blocks back to the system after each use. It reads this as a process starts: as workers do.
os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("SCEN_DIR", "SCEN_DEVICE", "SCEN_DEVICE_MAP", "SCEN_MODEL", "SCEN_BASE"):
    os.environ.pop(name, None)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory) -> None:
    """Tests share one cache folder of their own, also between the processes of one run."""
    folder = tmp_path_factory.getbasetemp()
    os.environ["SCEN_CACHE"] = str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is not here: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def demo_base():
    from scen_cli.model.base import load_base

    return load_base("demo", device="cpu")


@pytest.fixture(scope="session")
def demo_guard(demo_base):
    """What the demo base writes itself, made once."""
    from scen_cli.editing.create_project import DEFAULT_TEMPLATE
    from scen_cli.model.ffn import find_layer
    from scen_cli.model.template import make_template
    from scen_cli.neurons.build_guard import key_config_of, make_guard
    from scen_cli.recipe import RECIPES

    template = make_template(demo_base.tokenizer, demo_base.model, DEFAULT_TEMPLATE)
    key_config = key_config_of(template, RECIPES["closed-form"])
    return make_guard(demo_base, template, find_layer(demo_base.model, 2), key_config, 0, None)


@pytest.fixture
def make_editor(tmp_path, demo_base, demo_guard):
    """A new project on the demo base, with its editor: `make_editor("paper", theta=0.5)`."""
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor

    made = []

    def make(recipe: str = "key", target_module: str = "down", **changes) -> Editor:
        folder = tmp_path / f"project{len(made)}"
        guard = demo_guard if recipe in ("closed-form", "joint") else None
        project = new_project(
            folder, "demo", recipe=recipe, target_module=target_module, changes=changes, guard=guard, base=demo_base
        )
        editor = Editor(project, base=demo_base)
        made.append(editor)
        return editor

    yield make
    for editor in made:
        editor.detach()


@pytest.fixture(scope="session")
def edited(tmp_path_factory, demo_base):
    """A project on the demo base with 40 active edits, for tests that only read."""
    from scen_cli.data.suites import demo_edits
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor

    project = new_project(tmp_path_factory.mktemp("edited"), "demo", recipe="key", base=demo_base)
    editor = Editor(project, base=demo_base)
    edit_all(editor, demo_edits()[:40])
    yield editor
    editor.detach()


@pytest.fixture(scope="session")
def low_rank(tmp_path_factory, demo_base, demo_guard):
    """20 active edits by the default recipe (low-rank experts, whitened keys, parts of prompts, the second look), for
    tests that only read."""
    from scen_cli.data.suites import demo_edits
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor

    project = new_project(tmp_path_factory.mktemp("low-rank"), "demo", guard=demo_guard, base=demo_base)
    editor = Editor(project, base=demo_base)
    edit_all(editor, demo_edits()[:20])
    yield editor
    editor.detach()


def edit_all(editor, records: list[EditRecord]) -> list:
    """Edit the records in order; returns the ledger's rows."""
    with editor.project.writing():
        rows = [editor.edit(record, SourceLine("test", n)) for n, record in enumerate(records, start=1)]
        editor.project.merge()
    return rows


def writing(project):
    """`project.writing()`, unless the project is being written to already."""
    return nullcontext() if project.is_writing else project.writing()


def revert(project, *edit_ids: int) -> list:
    """Revert edits as `scen revert` does."""
    from scen_cli.editing.revert_edits import revert_edits

    with writing(project):
        return revert_edits(project, *edit_ids)


@pytest.fixture
def scen():
    """Runs a command in this process: `scen("status", "--json")`; `code` is the expected exit code."""
    from scen_cli.cli import app

    def run(*arguments: str, code: int = 0, stdin: str | None = None):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
        return result

    return run
