"""Other experts in the place of those that stand: all at once, or not at all."""

from __future__ import annotations

from scen_cli.project.disk import remove
from scen_cli.project.project import Project
from scen_cli.project.tensor_files import EditTensors, LowRankArrays, write_edit


def replace_experts(project: Project, experts: dict[int, LowRankArrays]) -> tuple[int, int]:
    """Put low-rank experts in the place of those under these ids; neurons and keys stay. Call inside
    `project.writing()`.

    The new files first, then one transaction, then the old files go: what a crash leaves behind is no edit's, and
    `scen verify --repair` removes it. Returns the bytes of the files before and after.
    """
    project.check_writing()
    ledger, stored, old = project.ledger, {}, [project.find(expert) for expert in experts]
    for edit, expert in zip(old, experts.values(), strict=True):
        index = project.files.index(edit)
        refitted = (index["refitted"], index["refitted_of"]) if len(index["refitted_of"]) else (None, None)
        tensors = EditTensors(expert, index["neuron"], index["key"], *refitted)
        stored[edit.id] = write_edit(project.folder, edit.id, tensors)
    with ledger.db.atomic():
        for edit in [edit for edit in ledger.edits() if edit.expert in stored]:
            file, rank = stored[edit.expert or 0], experts[edit.expert or 0].rank
            row = {"file": file.name, "sha256": file.sha256, "size": file.size, "rank": rank}
            with ledger.change("compress", edit.id, **row):
                ledger.db["edits"].update(edit.id, row)
    for edit in old:
        remove(project.folder / project.files.name(edit))
    return sum(edit.size or 0 for edit in old), sum(file.size for file in stored.values())
