"""What `import scen_cli` offers, and that the example in its docstring runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import scen_cli


def test_every_public_name_is_there():
    for name in scen_cli.__all__:
        assert getattr(scen_cli, name) is not None
    assert set(scen_cli._HOMES) | {"__version__"} == set(scen_cli.__all__)


def test_library_use_from_project_to_answer(tmp_path, demo_base):
    project = scen_cli.new_project(tmp_path / "facts", "demo", recipe="key", base=demo_base)
    editor = scen_cli.Editor(project, base=demo_base)
    with project.writing():
        edit = editor.edit(scen_cli.EditRecord(prompt="In which country is Pesustad?", target="Kenya"))
        project.merge()
    assert edit.state == "active"
    again = scen_cli.Editor(scen_cli.Project(tmp_path / "facts"), base=demo_base)
    assert again.answer(["In which country is Pesustad?"]).texts == ["Kenya"]
    again.detach()


def test_the_page_of_the_api_is_what_the_docstrings_say():
    path = Path(__file__).parents[1] / "docs" / "make_api.py"
    spec = importlib.util.spec_from_file_location("make_api", path)
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    assert make_api.PAGE.read_text(encoding="utf-8") == make_api.page(), "run `python docs/make_api.py`"
    for name in scen_cli.__all__:
        assert name.startswith("_") or f"## `{name}`" in make_api.page()
    assert "## `Editor.edit`\n\n```python\nedit(record: EditRecord" in make_api.page()
