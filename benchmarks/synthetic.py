"""Projects with thousands of edits, made in a minute, and a base that is larger than the demo's.

The projects have real prompts, keys and neurons of further demo facts, and random low-rank experts, which cost as much
as trained experts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from scen_cli import Editor, EditRecord, new_project
from scen_cli.data.records import SourceLine
from scen_cli.demo.world import Fact, right_facts
from scen_cli.model.base import Base
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.keys import KeyConfig
from scen_cli.model.known_bases import DEMO
from scen_cli.neurons.build_guard import whitening_in
from scen_cli.neurons.neuron_fit import neuron_of
from scen_cli.project.edit_files import EditTensors, LowRankArrays
from scen_cli.project.new_edits import TrainedEdit, TrainingStats
from scen_cli.project.project import Project

RANK = 16
LARGER = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}


def larger_base(folder: Path) -> Path:
    """A Llama of 34 M parameters with random weights and the demo's tokenizer. Its text is noise; its cost is real."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **LARGER,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def guard_file(folder: Path) -> Path:
    """A file of guard prompts, for a base that cannot generate sensible ones."""
    file = folder / "guard.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text}) for fact in right_facts() for text in fact.phrasings[:3]))
    return file


def make_project(folder: Path, facts: Sequence[Fact], base: Base, model: str = "demo", layer: int = 2) -> Project:
    """A project on the demo base, or on `model`, with an active edit for each fact."""
    project = new_project(folder, model, layer, guard=guard_file(folder.parent), base=base)
    editor = Editor(project, base=base)
    ids = [editor.template.prompt_ids(fact.phrasings[0]) for fact in facts]
    keys = (
        read_segment_keys(base, editor.edited, ids, KeyConfig())[0] if ids else torch.empty(0, editor.edited.ffn_width)
    )
    guard = project.guard()
    assert guard is not None
    whitening, rng = whitening_in(guard), np.random.default_rng(0)
    d, h = editor.edited.projection_shape
    where, training = SourceLine("synthetic", 1), TrainingStats(0, 0.0)
    project.ledger.db.execute("pragma synchronous = off")  # a temporary project need not survive a power cut
    with project.writing():
        for fact, key in zip(facts, keys, strict=True):
            record = EditRecord(prompt=fact.phrasings[0], target=fact.answer, subject=fact.subject)
            expert = LowRankArrays(*(rng.standard_normal(shape, np.float32) / 100 for shape in ((RANK, h), (d, RANK))))
            neuron = neuron_of(key[None], keys[:0], whitening).numpy()
            names = editor.names_of(record)
            trained = TrainedEdit(record, where, True, 1.0, subject_names=names)
            project.commit([trained], training, EditTensors(expert, neuron, key.numpy()), bias=0.0)
    editor.detach()
    return project
