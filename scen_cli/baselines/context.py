"""What methods are given before the first edit: a base, and prompts that no edit claims."""

from __future__ import annotations

from scen_cli.baselines.method import MethodContext
from scen_cli.editing.editor import Editor
from scen_cli.neurons.build_guard import unedited_prompts


def given_by(editor: Editor) -> MethodContext:
    """By a project: its base, template, layer and seed, and the prompts of its guard, or some that the base writes.

    Raises `UsageError` for a base that writes none.
    """
    seed = int(editor.project.settings["seed"])
    guard = [prompt.prompt for prompt in editor.project.ledger.guard()]
    prompts = guard or unedited_prompts(editor.base, editor.template, seed, None)
    return MethodContext(editor.base, editor.template, editor.edited.index, prompts, (), seed)
