"""SCEN behind the interface of the baselines: a project in a temporary folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from scen_cli.baselines.context import MethodContext, run_texts
from scen_cli.baselines.method import Cost, Method, Settings
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.create_project import BaseOptions, new_project, recipe_for
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.model.known_bases import DEMO
from scen_cli.neurons.build_guard import guard_from, key_config_of
from scen_cli.project.archive import backup, restore
from scen_cli.project.guard import NewGuard
from scen_cli.recipe import DEFAULT_RECIPE, make_recipe


class ScenSettings(Settings):
    """A recipe and changes to it."""

    recipe: str = Field(DEFAULT_RECIPE, description="a recipe of `scen init`")
    changes: dict[str, Any] = Field({}, description="settings of the recipe to change")


class Scen(Method):
    """Trains an expert and an indexing neuron for each edit, and commits them one by one."""

    name = "scen"
    any_base = True
    settings: ScenSettings

    def __init__(self, context: MethodContext, settings: ScenSettings) -> None:
        super().__init__(context, settings)
        self._folder = Path(tempfile.mkdtemp(prefix="scen-"))
        finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        name = "demo" if self.base.folder == DEMO else str(self.base.folder)
        recipe = recipe_for(name, settings.recipe, settings.changes)
        options = BaseOptions(name, self.context.layer, template=self.template.form, seed=self.context.seed)
        guard = guard_of(self.context) if recipe.needs_guard else None
        project = new_project(self._folder / "0", options, recipe=recipe, guard=guard, base=self.base)
        self.editor = Editor(project, base=self.base)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        with self.editor.project.writing():
            for edit in edits:
                try:
                    self.editor.edit(edit, SourceLine("suite", 1))
                except UsageError:
                    continue  # it conflicts with another edit; like an edit that was not learned, it counts as wrong
        if not self.attached:
            self.editor.detach()

    def detach(self) -> None:
        self.editor.detach()
        super().detach()

    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        if not self.attached:
            return super().generate(ids, mask, **options)
        with self.editor.snapshot() as patch:
            return self.editor.generate_with(patch, ids, mask, None, **options)[0]

    def logits(self, prompts: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor]) -> Tensor:
        if not self.attached:
            return super().logits(prompts, texts)
        with self.editor.snapshot() as patch, patch.using(patch.route(self.model, *prompts).choice):
            return run_texts(self.model, *texts)

    def cost(self) -> Cost:
        """The experts, neurons and keys of active edits, and the guard's whitening."""
        project = self.editor.project
        arrays: list[np.ndarray] = []
        for edit in project.ledger.edits("active"):
            expert = project.expert(edit.id)
            arrays += [expert] if isinstance(expert, np.ndarray) else [expert.lora_A, expert.lora_B]
            arrays += project.files.index(edit).values()
        if guard := project.guard():
            arrays += [guard.tensors.mean, guard.tensors.axes, guard.tensors.scales]
        return Cost(sum(array.size for array in arrays), sum(array.nbytes for array in arrays))

    def state(self) -> dict[str, Tensor]:
        """The project as one archive, which `scen backup` writes."""
        archive = self._folder / "backup.zip"
        backup(self.editor.project, archive)
        content = archive.read_bytes()
        archive.unlink()
        return {"project": torch.frombuffer(bytearray(content), dtype=torch.uint8)}

    def load(self, state: dict[str, Tensor]) -> None:
        archive = self._folder / "backup.zip"
        archive.write_bytes(state["project"].numpy().tobytes())
        project = restore(archive, Path(tempfile.mkdtemp(dir=self._folder)) / "project")
        archive.unlink()
        self.editor.detach()
        self.editor.project.close()
        self.editor = Editor(project, base=self.base)


def guard_of(context: MethodContext) -> NewGuard:
    """The unedited prompts as SCEN's guard, computed once."""
    base, template, [edited] = context.base, context.template, context.layers(1)
    key_config = key_config_of(template, make_recipe(DEFAULT_RECIPE, {}))
    return context.cached(
        ("guard", context.layer),
        lambda: guard_from(context.prompts, "unedited", base, template, edited, key_config, context.seed),
    )
