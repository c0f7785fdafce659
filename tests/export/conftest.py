"""A project by the default recipe: low-rank experts, whitened keys, parts of prompts, the second look."""

from __future__ import annotations

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.editor import Editor
from scen_cli.project_setup import new_project
from tests.conftest import edit_all


@pytest.fixture(scope="session")
def low_rank(tmp_path_factory, demo_base, demo_guard):
    """20 edits in force, for tests that only read."""
    project = new_project(tmp_path_factory.mktemp("low-rank"), "demo", guard=demo_guard, base=demo_base)
    editor = Editor(project, base=demo_base)
    edit_all(editor, demo_edits()[:20])
    yield editor
    editor.detach()
