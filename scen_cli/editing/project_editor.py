"""`ProjectEditor`: a project with its base loaded. Both kinds of editor derive from it."""

from __future__ import annotations

from scen_cli.model.base import Base
from scen_cli.model.loaded_base import LoadedBase
from scen_cli.project.project import Project


class ProjectEditor(LoadedBase):
    """A project with its base. Raises what `LoadedBase` raises."""

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        self.project = project
        super().__init__(project.settings, device, base)
