"""What every editor of a project can do, whichever method the project uses.

`editing.editor.Editor` edits by SCEN, `baselines.method_editor.MethodEditor` by another method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from scen_cli.data.entries import Entry
from scen_cli.editing.edit_plan import EditPlan, Outcome
from scen_cli.experts.fit_records import FitAll
from scen_cli.model.generation import Answers, Progress, no_progress
from scen_cli.model.template import Prompt
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project


class ProjectEditor(Protocol):
    """Edits a project, answers with its edits, and reverts them."""

    project: Project

    def plan(
        self, entries: Sequence[Entry], policy: str = "refuse", reason: str = "", progress: Progress = no_progress
    ) -> EditPlan:
        """Find out, without training, what will become of each record."""

    def train(self, plan: EditPlan, batch: int = 1, fit_all: FitAll | None = None) -> Iterator[dict[int, Outcome]]:
        """Train and commit what is planned, in order. Yields the outcomes by position, and fills them into the plan."""

    def answer(self, prompts: Sequence[Prompt], *, patched: bool = True, **options: Any) -> Answers:
        """Answers of the edited model, or of the base alone."""

    def explain(self, prompt: str) -> str:
        """Why the edited model answers a prompt as it does, in a sentence."""

    def revert(self, *edit_ids: int) -> list[Edit]:
        """Revert edits as if they had never been made. Call inside `project.writing()`."""

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt fits the base's context."""
