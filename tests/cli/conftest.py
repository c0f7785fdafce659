"""Projects for the tests of commands, as `--dir FOLDER`."""

from __future__ import annotations

import shutil

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from tests.conftest import edit_all, run_scen


@pytest.fixture(scope="session")
def _empty_project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty") / "p"
    run_scen("init", "--model", "demo", "--recipe", "key", "--dir", folder, "--device", "cpu")
    return folder


@pytest.fixture
def at(_empty_project, tmp_path):
    """A project by recipe `key` on the demo base, without edits."""
    shutil.copytree(_empty_project, tmp_path / "p")
    return ("--dir", tmp_path / "p")


@pytest.fixture
def edited_at(edited, tmp_path):
    """A copy of the session's project with 40 edits."""
    shutil.copytree(edited.project.folder, tmp_path / "copy")
    return ("--dir", tmp_path / "copy")


@pytest.fixture(scope="session")
def _unlearned_project(tmp_path_factory, demo_base, demo_guard):
    changes = {"expert_steps": 1, "extra_steps": 0, "prompt_augmentations": 0, "require_learned": False}
    changes |= {"subject_filter": False, "theta": 0.2}
    folder = tmp_path_factory.mktemp("unlearned") / "p"
    editor = Editor(new_project(folder, "demo", changes=changes, guard=demo_guard, base=demo_base), base=demo_base)
    edit_all(editor, demo_edits()[:30])
    editor.detach()
    return folder


@pytest.fixture
def unlearned_at(_unlearned_project, tmp_path):
    """30 edits whose experts are hardly trained, with neurons and a guard: for tests of routing and theta."""
    shutil.copytree(_unlearned_project, tmp_path / "unlearned")
    return ("--dir", tmp_path / "unlearned", "--device", "cpu")
