"""`LoadedProject`: a project and its base, loaded."""

from __future__ import annotations

from collections.abc import Sequence

from scen_cli.model.base import Base
from scen_cli.model.generation import MAX_NEW_TOKENS
from scen_cli.model.loaded_base import LoadedBase
from scen_cli.project.project import Project


class LoadedProject(LoadedBase):
    """A project and its base, loaded. Raises what `LoadedBase` raises."""

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        self.project = project
        super().__init__(project.settings, device, base)

    def longest_answer(self, pairs: Sequence[tuple[str, str]] = ()) -> int:
        """Tokens to allow an answer: `MAX_NEW_TOKENS`, or more where a target takes more.

        The targets are those of the active edits and of `pairs` (prompt, target). The limit is the same for every
        prompt, so that no answer is longer only because it may run on.
        """
        long = self.project.ledger.long_targets(MAX_NEW_TOKENS // 2)  # a token has at least half a byte
        lengths = [len(self.template.target_ids(prompt, target)) for prompt, target in (*long, *pairs)]
        return max([MAX_NEW_TOKENS, *lengths])
