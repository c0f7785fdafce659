"""Fine-tune a base on questions and answers: the first stage of the ZsRE protocol.

A plain training loop. After every epoch it writes a checkpoint: weights, Adam's moments and the state of the run in one
safetensors file. A stopped run resumes from the last checkpoint and ends with exactly the same weights as a run
without interruption.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from scen_cli.baselines.context import IGNORED, padded_right, run_texts
from scen_cli.data.records import EditRecord
from scen_cli.data.write_files import digest, write_json, write_lines
from scen_cli.errors import ScenError, UsageError
from scen_cli.model.base import Base
from scen_cli.model.digest import digest_of
from scen_cli.model.generation import context_length
from scen_cli.model.quantization import is_whole
from scen_cli.model.template import Template, make_template
from scen_cli.studies import ProgressCallback

CHECKPOINT = "checkpoint.safetensors"
WEIGHT = "weight"  # the tensor name is NAME|weight for a parameter and NAME|KEY for an entry of Adam's state


def save_checkpoint(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write the file under a temporary name, then rename it: an interrupted write leaves the previous checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in {WEIGHT: parameter.detach(), **optimizer.state[parameter]}.items():
            tensors[f"{name}|{key}"] = torch.as_tensor(value).contiguous().clone()
    temporary = path.with_name(f"{path.name}.tmp")
    save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    temporary.replace(path)


def load_checkpoint(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Load weights and moments into model and optimizer; return the run's state, or None if there is no checkpoint.

    Raises:
        UsageError: the checkpoint belongs to a run with other settings.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
        check_same_run(path.parent, state, settings)
        parameters = dict(model.named_parameters())
        for tensor_name in file.keys():  # noqa: SIM118 (the file object is no dictionary)
            name, _, key = tensor_name.rpartition("|")
            parameter, value = parameters[name], file.get_tensor(tensor_name)
            if key == WEIGHT:
                parameter.data.copy_(value)
            else:  # Adam keeps `step` on the CPU
                optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    return state


def check_same_run(folder: Path, state: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise `UsageError` if the saved state differs from the settings of this run."""
    different = next((name for name, value in settings.items() if state.get(name) != value), None)
    if different is not None:
        raise UsageError(
            f"`{folder}` holds a run with another {different}: {state.get(different)}", hint="give another --out"
        )


TrainingSequence = tuple[list[int], int]  # token ids of prompt, target and end; number of target and end tokens


@dataclass(frozen=True)
class FineTuningConfig:
    """Settings of a run: AdamW, linear warm-up over the share `warmup` of all steps, then cosine decay to 0."""

    epochs: int = 3
    batch: int = 16
    lr: float = 1e-5
    warmup: float = 0.03
    seed: int = 0


def fine_tune(
    base: Base,
    template_form: str,
    train: Sequence[EditRecord],
    test: Sequence[EditRecord],
    folder: Path,
    config: FineTuningConfig,
    progress: ProgressCallback,
    log: Callable[[str], None],
) -> None:
    """Train the base on answer and end tokens of `train`; write the new base and the split to `folder`.

    Args:
        base: A base that is not quantised. Its weights change.
        template_form: Form of the prompt template, as `scen init --template` takes it.
        train: Records to train on.
        test: The other records. They are written to `d_test.jsonl` and not used otherwise.
        folder: New or empty folder, or the folder of the same run.
        config: Settings of the run.
        progress: Called after every step.
        log: Called after every saved epoch.

    Raises:
        UsageError: `folder` holds something else, the base is quantised, or no question fits the context.
        ScenError: The loss diverged.
    """
    _check_inputs(base, folder, config)
    template = make_template(base.tokenizer, base.model, template_form)
    questions = digest([[record.as_json() for record in part] for part in (train, test)])
    settings = {**asdict(config), "template": template_form, "base": digest_of(base.folder), "questions": questions}
    result, checkpoint = folder / "training.json", folder / CHECKPOINT
    if result.is_file():
        return check_same_run(folder, json.loads(result.read_text(encoding="utf-8")), settings)
    sequences = [sequence for record in train if (sequence := _tokenize(template, record, base))]
    if not sequences:
        raise UsageError("none of the questions fits the base's context")
    if len(sequences) < len(train):
        log(f"{len(train) - len(sequences)} questions do not fit the base's context and are left out")
    model = base.model.float().train()
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    state = load_checkpoint(checkpoint, model, optimizer, settings) or {**settings, "losses": [], "seconds": 0.0}
    for epoch in range(len(state["losses"]), config.epochs):
        started = time.perf_counter()
        state["losses"].append(_train_epoch(model, optimizer, sequences, epoch, config, progress))
        state["seconds"] += time.perf_counter() - started
        save_checkpoint(checkpoint, model, optimizer, state)
        log(f"epoch {epoch + 1}: loss {state['losses'][-1]:.4f}")
    model.eval().requires_grad_(False)
    model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    write_lines(folder / "d_train.jsonl", (record.as_json() for record in train))
    write_lines(folder / "d_test.jsonl", (record.as_json() for record in test))
    write_json(result, {**state, "seconds": round(state["seconds"], 1)})
    checkpoint.unlink(missing_ok=True)
    return None


def _check_inputs(base: Base, folder: Path, config: FineTuningConfig) -> None:
    """Raise `UsageError` for a quantised base, a folder with foreign files (the base itself, say), or a bad rate."""
    if not is_whole(base.model):
        raise UsageError("the base is quantised and cannot be fine-tuned", hint="give the checkpoint it was made from")
    own_files = ("training.json", CHECKPOINT, f"{CHECKPOINT}.tmp")
    holds_run = any((folder / name).exists() for name in own_files)
    is_used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if folder.resolve() == base.folder.resolve() or (is_used and not holds_run):
        raise UsageError(f"`{folder}` is not a new or empty folder", hint="choose another `--out`")
    if not (isfinite(config.lr) and config.lr > 0):
        raise UsageError(f"a rate of {config.lr} trains nothing", hint="e.g. `--lr 1e-5`")


def _tokenize(template: Template, record: EditRecord, base: Base) -> TrainingSequence | None:
    """The record as a training sequence; None if it exceeds the base's context."""
    prompt = template.prompt_ids(record.prompt)
    target = template.target_ids(record.prompt, record.target)
    context = context_length(base.model)
    if not target or (context and len(prompt) + len(target) > context):
        return None
    return prompt + target, len(target)


def _train_epoch(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    sequences: Sequence[TrainingSequence],
    epoch: int,
    config: FineTuningConfig,
    progress: ProgressCallback,
) -> float:
    """Train one epoch in a seeded order and return its mean loss. Raises `ScenError` if the loss is not finite."""
    steps = math.ceil(len(sequences) / config.batch)
    torch.manual_seed(config.seed * 100_003 + epoch)  # dropout, in bases that have it
    order = random.Random(config.seed + epoch).sample(range(len(sequences)), len(sequences))
    total = 0.0
    for step in range(steps):
        batch = [sequences[i] for i in order[step * config.batch : (step + 1) * config.batch]]
        loss = _train_step(model, optimizer, batch, _rate(epoch * steps + step, config.epochs * steps, config))
        total += loss
        progress("", f"epoch {epoch + 1}, loss {loss:.4f}")
    if not isfinite(total):
        raise ScenError(f"the loss of epoch {epoch + 1} is not a number: it diverged", hint="a lower `--lr`")
    return total / steps


def _train_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Sequence[TrainingSequence], rate: float
) -> float:
    """One AdamW step on a right-padded batch; returns the mean cross-entropy of the scored tokens."""
    ids, mask = padded_right([tokens for tokens, _ in batch], model.device)
    labels = torch.full_like(ids, IGNORED)
    for row, (tokens, scored) in enumerate(batch):
        labels[row, len(tokens) - scored : len(tokens)] = torch.tensor(tokens[-scored:])
    logits = run_texts(model, ids, mask)
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.item())


def _rate(step: int, steps: int, config: FineTuningConfig) -> float:
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
