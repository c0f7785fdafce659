"""Replaces experts of a project by low-rank ones: all at once, or not at all."""

from __future__ import annotations

from scen_cli.project.disk import remove
from scen_cli.project.edit_files import EditTensors, LowRankArrays, write_edit
from scen_cli.project.project import Project


def replace_experts(project: Project, experts: dict[int, LowRankArrays]) -> tuple[int, int]:
    """Replace experts; neurons and keys stay. Call inside `project.writing()`.

    First the new files are written, then one transaction changes the rows, then the old files are removed. What a
    crash leaves is a stray file, which `scen verify --repair` removes.

    Args:
        project: The project.
        experts: By expert: the new one.

    Returns:
        The bytes of the files before and after.
    """
    project.check_writing()
    ledger, stored, old = project.ledger, {}, [project.find(expert) for expert in experts]
    for edit, expert in zip(old, experts.values(), strict=True):
        index = project.files.index(edit)
        refitted = (index["refitted"], index["refitted_of"]) if len(index["refitted_of"]) else (None, None)
        tensors = EditTensors(expert, index["neuron"], index["key"], *refitted)
        stored[edit.id] = write_edit(project.folder, edit.id, tensors)
    with ledger.db.atomic():
        for edit in ledger.edits():
            if edit.expert in stored:
                file, rank = stored[edit.expert], experts[edit.expert].rank
                row = {"file": file.name, "sha256": file.sha256, "size": file.size, "rank": rank}
                with ledger.change("compress", edit.id, **row):
                    ledger.db["edits"].update(edit.id, row)
    for edit in old:
        remove(project.folder / project.files.name(edit))
    return sum(edit.size or 0 for edit in old), sum(file.size for file in stored.values())
