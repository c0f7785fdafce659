"""scen: correct what a large language model gets wrong, one fact at a time, without retraining it.

from scen_cli import Editor, EditRecord, Project, new_project

project = new_project("facts", "demo", recipe="key")   # or Project("facts"), one that is there
editor = Editor(project)                               # loads the base
with project.writing():
    editor.edit(EditRecord(prompt="...", target="..."))
editor.answer(["..."]).texts
editor.detach()                                        # the base, bit for bit
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scen_cli._version import __version__

if TYPE_CHECKING:
    from scen_cli.baselines.method_editor import MethodEditor, new_method_project
    from scen_cli.data.records import EditRecord
    from scen_cli.data.suites import Suite, load_suite
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor
    from scen_cli.editing.patched_model import PatchedModel
    from scen_cli.editing.revert_edits import revert_edits
    from scen_cli.errors import ScenError
    from scen_cli.evaluation.evaluate_project import evaluate
    from scen_cli.export.merged_checkpoint import export_merged
    from scen_cli.export.peft_folder import export_adapters
    from scen_cli.export.transformers_folder import export_checkpoint
    from scen_cli.model.base import Base, load_base
    from scen_cli.project.project import Project

_HOMES = {
    "Base": "model.base",
    "EditRecord": "data.records",
    "Editor": "editing.editor",
    "MethodEditor": "baselines.method_editor",
    "PatchedModel": "editing.patched_model",
    "Project": "project.project",
    "ScenError": "errors",
    "Suite": "data.suites",
    "evaluate": "evaluation.evaluate_project",
    "export_adapters": "export.peft_folder",
    "export_checkpoint": "export.transformers_folder",
    "export_merged": "export.merged_checkpoint",
    "load_base": "model.base",
    "load_suite": "data.suites",
    "new_method_project": "baselines.method_editor",
    "new_project": "editing.create_project",
    "revert_edits": "editing.revert_edits",
}
__all__ = [
    "Base",
    "EditRecord",
    "Editor",
    "MethodEditor",
    "PatchedModel",
    "Project",
    "ScenError",
    "Suite",
    "__version__",
    "evaluate",
    "export_adapters",
    "export_checkpoint",
    "export_merged",
    "load_base",
    "load_suite",
    "new_method_project",
    "new_project",
    "revert_edits",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for: `import scen_cli` loads no torch."""
    if name in _HOMES:
        return getattr(import_module(f"scen_cli.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'scen_cli' has no attribute {name!r}")
