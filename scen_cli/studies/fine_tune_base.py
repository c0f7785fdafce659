"""Fine-tune a base on questions and answers: the first stage of the ZsRE protocol.

A plain training loop. After every epoch a checkpoint is written, and a run that was stopped goes on
from the last one to the same digits as one that was not.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.data.records import EditRecord
from scen_cli.data.write_records import digest, write_json, write_lines
from scen_cli.errors import ScenError, UsageError
from scen_cli.model.base import Base
from scen_cli.model.digest import digest_of
from scen_cli.model.keys import positions_of
from scen_cli.model.quantization import is_whole
from scen_cli.model.template import Template, make_template

IGNORED = -100  # the label of a token that carries no loss
Tell = Callable[[str, str], None]


@dataclass(frozen=True)
class Tuning:
    """Settings of a run: AdamW, linear warm-up over `warmup` of all steps, then a cosine to nothing."""

    epochs: int = 3
    batch: int = 16
    lr: float = 1e-5
    warmup: float = 0.03
    seed: int = 0


def fine_tune(
    base: Base,
    form: str,
    train: Sequence[EditRecord],
    test: Sequence[EditRecord],
    folder: Path,
    tuning: Tuning,
    tell: Tell,
    note: Callable[[str], None],
) -> None:
    """Train on the answer and end tokens of `train` and write a base to `folder`, with the split beside it.

    `form` is the template's. `tell` hears of every step, `note` of every epoch that is kept. Raises
    `UsageError` if the folder holds a run of other settings.
    """
    if not is_whole(base.model):
        raise UsageError("the base is quantised: it cannot be tuned", hint="give the checkpoint that it was made of")
    template = make_template(base.tokenizer, base.model, form)
    _refuse_foreign(folder, base.folder)
    if not (isfinite(tuning.lr) and tuning.lr > 0):
        raise UsageError(f"a rate of {tuning.lr} trains nothing", hint="e.g. `--lr 1e-5`")
    questions = digest([[record.as_json() for record in part] for part in (train, test)])
    about = {**asdict(tuning), "template": form, "base": digest_of(base.folder), "questions": questions}
    if (folder / "training.json").is_file():
        _check_same(folder / "training.json", about)
        return
    sequences = [ready for record in train if (ready := _sequence(template, record, base))]
    if not sequences:
        raise UsageError("none of the questions fits the base's context")
    if len(sequences) < len(train):
        note(f"{len(train) - len(sequences)} questions do not fit the base's context and are left out")
    model = base.model.float().train()
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=tuning.lr, weight_decay=0.0)
    steps_an_epoch = math.ceil(len(sequences) / tuning.batch)
    losses, seconds = _resume(folder / "checkpoint", model, optimizer, about)
    for epoch in range(len(losses), tuning.epochs):
        started = time.perf_counter()
        torch.manual_seed(tuning.seed * 100_003 + epoch)  # of dropout, where a base has it
        order = random.Random(tuning.seed + epoch).sample(range(len(sequences)), len(sequences))
        total = 0.0
        for step in range(steps_an_epoch):
            rows = [sequences[row] for row in order[step * tuning.batch : (step + 1) * tuning.batch]]
            rate = _rate(epoch * steps_an_epoch + step, tuning.epochs * steps_an_epoch, tuning)
            loss = _train_step(model, optimizer, rows, rate)
            total += loss
            tell("", f"epoch {epoch + 1}, loss {loss:.4f}")
        if not isfinite(total):
            raise ScenError(f"the loss of epoch {epoch + 1} is not a number: it diverged", hint="a lower `--lr`")
        losses.append(total / steps_an_epoch)
        seconds += time.perf_counter() - started
        _save_checkpoint(folder / "checkpoint", model, optimizer, {**about, "losses": losses, "seconds": seconds})
        note(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
    model.eval().requires_grad_(False)
    model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    write_lines(folder / "d_train.jsonl", (record.as_json() for record in train))
    write_lines(folder / "d_test.jsonl", (record.as_json() for record in test))
    write_json(folder / "training.json", {**about, "losses": losses, "seconds": round(seconds, 1)})
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def _sequence(template: Template, record: EditRecord, base: Base) -> tuple[list[int], int] | None:
    """Ids of prompt, target and end token, and how many of them are target and end; None if that is too long."""
    prompt = template.prompt_ids(record.prompt)
    target = template.target_ids(record.prompt, record.target)
    context = getattr(base.model.config, "max_position_embeddings", None)
    if not target or (context and len(prompt) + len(target) > context):
        return None
    return prompt + target, len(target)


def _train_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, rows: list[tuple[list[int], int]], rate: float
) -> float:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for place, (tokens, scored) in enumerate(rows):
        ids[place, : len(tokens)] = torch.tensor(tokens)
        mask[place, : len(tokens)] = 1
        labels[place, len(tokens) - scored : len(tokens)] = torch.tensor(tokens[-scored:])
    ids, mask, labels = (tensor.to(model.device) for tensor in (ids, mask, labels))
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.item())


def _rate(step: int, steps: int, tuning: Tuning) -> float:
    warm = max(1, round(tuning.warmup * steps))
    if step < warm:
        return tuning.lr * (step + 1) / warm
    return tuning.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _save_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Weights and Adam's moments, as safetensors; the folder is whole or the one before it stands."""
    new, old = folder.with_name("checkpoint.new"), folder.with_name("checkpoint.old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    names = [name for name, _ in model.named_parameters()]
    save_file(
        {name: value.detach().contiguous().clone() for name, value in model.named_parameters()},
        new / "model.safetensors",
    )
    moments = {
        f"{name}|{key}": torch.as_tensor(value).contiguous().clone()
        for name, parameter in zip(names, model.parameters(), strict=True)
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, new / "optimizer.safetensors")
    write_json(new / "state.json", state)
    shutil.rmtree(old, ignore_errors=True)  # of a run that was killed while removing it
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _resume(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, about: dict[str, Any]
) -> tuple[list[float], float]:
    """Losses of the epochs that are done and the seconds they took, with weights and moments put back."""
    old = folder.with_name("checkpoint.old")
    if not folder.exists() and old.exists():  # stopped between the two renames
        old.rename(folder)
    if not (folder / "state.json").is_file():
        return [], 0.0
    state = _check_same(folder / "state.json", about)
    weights = load_file(folder / "model.safetensors")
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        parameter, _, key = name.rpartition("|")
        moments.setdefault(parameter, {})[key] = value
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments[name].items()
            }
    return state["losses"], state["seconds"]


def _refuse_foreign(folder: Path, base: Path) -> None:
    """Raise `UsageError` for a folder that holds anything but a run of ours: the base itself, say."""
    ours = any((folder / name).exists() for name in ("training.json", "checkpoint", "checkpoint.old", "checkpoint.new"))
    is_base = folder.resolve() == base.resolve()
    if is_base or (folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError(f"`{folder}` is not a new or empty folder", hint="choose another `--out`")


def _check_same(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name, value in about.items() if state.get(name) != value]
    if other:
        raise UsageError(
            f"`{path.parent}` holds a run with another {other[0]}: {state.get(other[0])}", hint="give another --out"
        )
    return state
