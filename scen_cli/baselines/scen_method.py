"""SCEN itself behind the interface: a project in a folder of its own, edited and asked as any other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import finalize

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from scen_cli.baselines.method import Cost, Method, MethodContext, Settings
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.model.base import DEMO
from scen_cli.model.ffn import find_layer
from scen_cli.model.keys import positions_of
from scen_cli.neurons.build_guard import guard_from, key_config_of
from scen_cli.project.archive import backup, restore
from scen_cli.project.guard import NewGuard
from scen_cli.recipe import DEFAULT_RECIPE, make_recipe


class ScenSettings(Settings):
    """A recipe, and what is changed in it."""

    recipe: str = Field(DEFAULT_RECIPE, description="a recipe of `scen init`")
    changes: dict[str, Any] = Field({}, description="settings of the recipe that differ")


class Scen(Method):
    """An expert and an indexing neuron for each edit, committed one by one."""

    name = "scen"
    settings_type: ClassVar[type[Settings]] = ScenSettings
    any_base = True
    settings: ScenSettings

    def __init__(self, given: MethodContext, settings: ScenSettings) -> None:
        super().__init__(given, settings)
        self._folder = Path(tempfile.mkdtemp(prefix="scen-"))
        finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        is_demo = self.given.base.folder == DEMO
        recipe = make_recipe(settings.recipe, settings.changes)
        project = new_project(
            self._folder / "0",
            "demo" if is_demo else str(self.given.base.folder),
            self.given.layer,
            template=self.given.template.form,
            recipe=recipe,
            guard=guard_of(self.given) if recipe.needs_guard else None,
            seed=self.given.seed,
            base=self.given.base,
        )
        self.editor = Editor(project, base=self.given.base)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        with self.editor.project.writing():
            for edit in edits:
                try:
                    self.editor.edit(edit, SourceLine("suite", 1))
                except UsageError:  # it cannot stand beside another: like one that was not learned, it counts as wrong
                    continue
            self.editor.project.merge()
        if not self.attached:
            self.editor.detach()

    def detach(self) -> None:
        self.editor.detach()
        super().detach()

    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        if not self.attached:
            return super().generate(ids, mask, **options)
        with self.editor.snapshot() as patch:
            out: Tensor = self.editor.generate_with(patch, ids, mask, None, **options)[0]
        return out

    def logits(self, prompts: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor]) -> Tensor:
        if not self.attached:
            return super().logits(prompts, texts)
        ids, mask = texts
        with self.editor.snapshot() as patch, patch.using(patch.route(self.model, *prompts).choice):
            out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False)
        logits: Tensor = out.logits
        return logits

    def cost(self) -> Cost:
        """Experts, neurons and keys of the active edits, and the guard's whitening."""
        project = self.editor.project
        arrays: list[np.ndarray] = []
        for edit in project.ledger.edits("active"):
            expert = project.expert(edit.id)
            arrays += [expert] if isinstance(expert, np.ndarray) else [expert.lora_A, expert.lora_B]
            arrays += project.files.index(edit).values()
        if guard := project.guard():
            arrays += [guard.tensors.mean, guard.tensors.axes, guard.tensors.scales]
        return Cost(sum(one.size for one in arrays), sum(one.nbytes for one in arrays))

    def state(self) -> dict[str, Tensor]:
        """The project, as `scen backup` writes it."""
        to = self._folder / "backup.zip"
        backup(self.editor.project, to)
        content = to.read_bytes()
        to.unlink()
        return {"project": torch.frombuffer(bytearray(content), dtype=torch.uint8)}

    def load(self, state: dict[str, Tensor]) -> None:
        file = self._folder / "backup.zip"
        file.write_bytes(state["project"].numpy().tobytes())
        folder = Path(tempfile.mkdtemp(dir=self._folder)) / "project"
        project = restore(file, folder)
        file.unlink()
        self.editor.detach()
        self.editor.project.close()
        self.editor = Editor(project, base=self.base)


def guard_of(given: MethodContext) -> NewGuard:
    """The unedited prompts as SCEN's guard, made once."""
    key = ("guard", given.layer)
    if key not in given.kept:
        edited = find_layer(given.base.model, given.layer)
        key_config = key_config_of(given.template, make_recipe(DEFAULT_RECIPE, {}))
        given.kept[key] = guard_from(
            given.prompts, "unedited", given.base, given.template, edited, key_config, given.seed
        )
    guard: NewGuard = given.kept[key]
    return guard


METHODS: list[type[Method]] = [Scen]
