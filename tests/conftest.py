"""Shared fixtures: one demo base per session, and projects on it. The first test that needs `torch` imports it."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.data.suites import demo_edits

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may download from a hub
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# By default glibc returns torch's blocks to the system after each use, which is slow. It reads these settings when a
# process starts, so that they apply to worker processes.
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
    """One cache folder for all tests and processes of a run, apart from the user's."""
    folder = tmp_path_factory.getbasetemp()
    os.environ["SCEN_CACHE"] = str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published data beside the checkout. Without it, tests that need it are skipped."""
    if not SHARED.is_dir():
        pytest.skip(f"there is no published data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def demo_base():
    from scen_cli.model.base import load_base

    return load_base("demo", device="cpu")


@pytest.fixture(scope="session")
def demo_guard(demo_base):
    """The guard that the demo base samples: prompts, splits and keys."""
    from scen_cli.model.ffn import find_layer
    from scen_cli.model.known_bases import DEFAULT_TEMPLATE
    from scen_cli.model.template import make_template
    from scen_cli.neurons.build_guard import key_config_of, make_guard
    from scen_cli.recipe import RECIPES

    template = make_template(demo_base.tokenizer, demo_base.model, DEFAULT_TEMPLATE)
    key_config = key_config_of(template, RECIPES["closed-form"])
    return make_guard(demo_base, template, find_layer(demo_base.model, 2), key_config, 0, None)


@pytest.fixture
def make_editor(tmp_path, demo_base, demo_guard):
    """A function that makes a new project on the demo base and its editor: `make_editor("paper", theta=0.5)`."""
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor

    editors = []

    def make(recipe: str = "key", target_module: str = "down", **changes) -> Editor:
        folder = tmp_path / f"project{len(editors)}"
        guard = demo_guard if recipe in ("closed-form", "joint") else None
        project = new_project(
            folder, "demo", recipe=recipe, target_module=target_module, changes=changes, guard=guard, base=demo_base
        )
        editor = Editor(project, base=demo_base)
        editors.append(editor)
        return editor

    yield make
    for editor in editors:
        editor.detach()


@pytest.fixture(scope="session")
def edited(tmp_path_factory, demo_base):
    """A project on the demo base with 40 active edits, for tests that only read."""
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor

    project = new_project(tmp_path_factory.mktemp("edited"), "demo", recipe="key", base=demo_base)
    editor = Editor(project, base=demo_base)
    edit_all(editor, demo_edits()[:40])
    yield editor
    editor.detach()


@pytest.fixture(scope="session")
def low_rank(tmp_path_factory, demo_base, demo_guard):
    """20 active edits by the default recipe (low-rank experts, whitened keys, segments, subject filter), for tests that
    only read."""
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor

    project = new_project(tmp_path_factory.mktemp("low-rank"), "demo", guard=demo_guard, base=demo_base)
    editor = Editor(project, base=demo_base)
    edit_all(editor, demo_edits()[:20])
    yield editor
    editor.detach()


def edit_all(editor, records: list[EditRecord]) -> list:
    """Edit the records in order. Returns the ledger's edits."""
    with editor.project.writing():
        edits = [editor.edit(record, SourceLine("test", n)) for n, record in enumerate(records, start=1)]
        editor.project.merge()
    return edits


def writing(project):
    """`project.writing()`, or nothing if this process already writes to the project."""
    return nullcontext() if project.is_writing else project.writing()


def revert(project, *edit_ids: int) -> list:
    """Revert edits like `scen revert`."""
    from scen_cli.editing.revert_edits import revert_edits

    with writing(project):
        return revert_edits(project, *edit_ids)


def run_scen(*arguments: object, code: int = 0, stdin: str | None = None):
    """Run a command in this process; `code` is the expected exit code."""
    from scen_cli.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture
def scen():
    """`run_scen`: `scen("status", "--json")`."""
    return run_scen


@pytest.fixture(scope="session")
def _logged_project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logged") / "p"
    run_scen("init", "--model", "demo", "--recipe", "key", "--dir", folder, "--author", "Ada <ada@example.com>")
    for record, target, author in zip(demo_edits(), ("Peru", "Cuba", "Chad"), ("", "Eva", "Eva"), strict=False):
        options = ("--author", author) if author else ()
        run_scen("edit", "--prompt", record.prompt, "--target", target, "--dir", folder, *options)
    run_scen("revert", "2", "--dir", folder, "--author", "Max")
    return folder


@pytest.fixture
def logged_at(_logged_project, tmp_path) -> tuple[str, Path]:
    """`--dir` of a project with a log of five events by three authors: init, three edits, revert of edit 2."""
    shutil.copytree(_logged_project, tmp_path / "logged")
    return ("--dir", tmp_path / "logged")
