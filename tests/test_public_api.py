"""What `import scen_cli` offers, and that the example in its docstring runs."""

from __future__ import annotations

from pathlib import Path

import scen_cli


def test_every_public_name_resolves():
    for name in scen_cli.__all__:
        assert getattr(scen_cli, name) is not None
    assert set(scen_cli._HOMES) | {"__version__"} == set(scen_cli.__all__)


def test_edit_and_answer_with_public_names(tmp_path, demo_base):
    project = scen_cli.new_project(tmp_path / "facts", "demo", recipe="key", base=demo_base)
    editor = scen_cli.Editor(project, base=demo_base)
    with project.writing():
        edit = editor.edit(scen_cli.EditRecord(prompt="In which country is Pesustad?", target="Kenya"))
        project.merge()
    assert edit.state == "active"
    again = scen_cli.Editor(scen_cli.Project(tmp_path / "facts"), base=demo_base)
    assert again.answer(["In which country is Pesustad?"]).texts == ["Kenya"]
    again.detach()


def test_the_package_is_typed():
    """Type checkers read the annotations of an installed package only if this file is there (PEP 561)."""
    assert (Path(scen_cli.__file__).parent / "py.typed").exists()
