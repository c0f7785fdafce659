"""A project of thousands of edits in a minute: real prompts, keys and neurons of the demo's further facts, and random
low-rank experts, which cost what trained ones do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scen_cli import Editor, EditRecord, new_project
from scen_cli.data.records import SourceLine
from scen_cli.demo.world import further_facts
from scen_cli.editing.closed_form import neuron_of
from scen_cli.guarding import read_all, whitening_in
from scen_cli.model.base import Base
from scen_cli.model.reading import Reading
from scen_cli.project.project import Project
from scen_cli.project.store import EditTensors, LowRankArrays
from scen_cli.project.trained import Trained, Training

RANK = 16


def make_project(folder: Path, edits: int, base: Base) -> Project:
    """A project on the demo base with so many edits in force."""
    project = new_project(folder, "demo", base=base)
    editor = Editor(project, base=base)
    facts = further_facts(edits)
    ids = [editor.template.prompt_ids(fact.phrasings[0]) for fact in facts]
    keys, _rows = read_all(base, editor.edited, ids, Reading())
    guard = project.guard()
    assert guard is not None
    whitening, rng = whitening_in(guard), np.random.default_rng(0)
    d, h = editor.edited.projection_shape
    where, training = SourceLine("synthetic", 1), Training(0, 0.0)
    project.ledger.db.execute("pragma synchronous = off")  # nothing here need outlast a power cut
    with project.writing():
        for fact, key in zip(facts, keys, strict=True):
            record = EditRecord(prompt=fact.phrasings[0], target=fact.answer, subject=fact.subject)
            expert = LowRankArrays(*(rng.standard_normal(shape, np.float32) / 100 for shape in ((RANK, h), (d, RANK))))
            neuron = neuron_of(key[None], keys[:0], whitening).numpy()
            forms = editor.template.subject_forms(record.subject, (record.prompt,))
            trained = Trained(record, where, True, 1.0, subject_forms=forms)
            project.commit([trained], training, EditTensors(expert, neuron, key.numpy()), bias=0.0)
        project.merge()
    editor.detach()
    return project
