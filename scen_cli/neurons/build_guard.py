"""Making a guard: prompts that must stay the base's own, from a file or written by the base, and their keys."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scen_cli.data.cache import cached_texts
from scen_cli.data.suites import read_prompts
from scen_cli.errors import UsageError
from scen_cli.model.base import Base
from scen_cli.model.digest import digest_of
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.keys import KeyConfig, padded, read_segments
from scen_cli.model.quantization import is_whole
from scen_cli.model.routing import Whitening
from scen_cli.model.sample_prompts import sample_prompts
from scen_cli.model.template import Template
from scen_cli.neurons.closed_form import whitening_of
from scen_cli.project.guard import SELF_WRITTEN, SHARES, Guard, GuardTensors, NewGuard
from scen_cli.recipe import Recipe

SELF_WRITTEN_PROMPTS = 2000
FEWEST = 50
BATCH = 64  # prompts read together
ALIKE = 0.5  # mean cosine of different prompts' keys from which on they tell little apart


def key_config_of(template: Template, recipe: Recipe) -> KeyConfig:
    """How a recipe reads keys of prompts in this template."""
    if not recipe.route_segments:
        return KeyConfig(recipe.key_pooling)
    frame = template.frame()
    return KeyConfig(recipe.key_pooling, True, frame.start, frame.opening, frame.closing, template.sentence_ends())


def make_guard(
    base: Base, template: Template, edited: EditedLayer, key_config: KeyConfig, seed: int, file: Path | None
) -> NewGuard:
    """The guard of `unedited_prompts`. Raises what that raises."""
    source = str(file.resolve()) if file else SELF_WRITTEN
    return guard_from(unedited_prompts(base, template, seed, file), source, base, template, edited, key_config, seed)


def unedited_prompts(base: Base, template: Template, seed: int, file: Path | None) -> list[str]:
    """Prompts of a file, or 2,000 that the base writes itself (seeded), as far as they fit the base's context.

    Raises `UsageError` for a file that cannot be read or has too few prompts, or a base that writes none.
    """
    if file is None:
        prompts = _sampled_prompts(base, template, seed)
    else:
        prompts = list(dict.fromkeys(read_prompts(file)))
    room = getattr(base.model.config, "max_position_embeddings", None) or 10**9
    prompts = [prompt for prompt in prompts if 0 < len(template.prompt_ids(prompt)) < room]
    if len(prompts) < FEWEST:
        who = f"`{file}` holds" if file else "of its own, the base wrote"
        raise UsageError(
            f"{who} {len(prompts)} prompts that can stand guard: at least {FEWEST} are needed",
            hint="`--guard FILE` takes any file of prompts that must stay as they are; recipe `key` needs none",
        )
    return prompts


def _sampled_prompts(base: Base, template: Template, seed: int) -> list[str]:
    """Prompts that the base samples. Those of a base in one dtype on one device are cached."""

    def sample() -> list[str]:
        return sample_prompts(base, template, SELF_WRITTEN_PROMPTS, seed, FEWEST)

    if not is_whole(base.model):
        return sample()
    held_as = [digest_of(base.folder), str(base.model.dtype), str(base.device), torch.__version__]
    return cached_texts("sampled-prompts", [held_as, template.form, SELF_WRITTEN_PROMPTS, seed], sample)


def guard_from(
    prompts: Sequence[str],
    source: str,
    base: Base,
    template: Template,
    edited: EditedLayer,
    key_config: KeyConfig,
    seed: int,
) -> NewGuard:
    """These prompts, split at random (seeded) into those that neurons may learn from, those that set theta and those
    that figures are reported on; and their keys."""
    prompts = list(prompts)
    random.Random(seed).shuffle(prompts)
    ends = dict(zip(SHARES, accumulate(SHARES.values()), strict=True))
    splits = [next(split for split, end in ends.items() if place < end * len(prompts)) for place in range(len(prompts))]
    named = [(prompt, split, source) for prompt, split in zip(prompts, splits, strict=True)]
    return NewGuard(
        named, _tensors(named, [template.prompt_ids(prompt) for prompt in prompts], base, edited, key_config)
    )


def reread_keys(guard: Guard, base: Base, template: Template, edited: EditedLayer, key_config: KeyConfig) -> NewGuard:
    """The same prompts and splits, their keys read otherwise: in another template, at another layer."""
    named = [(prompt.prompt, prompt.split, prompt.source) for prompt in guard.prompts]
    tokens = [template.prompt_ids(prompt) for prompt, _split, _source in named]
    return NewGuard(named, _tensors(named, tokens, base, edited, key_config))


def _tensors(
    named: list[tuple[str, str, str]], tokens: list[list[int]], base: Base, edited: EditedLayer, key_config: KeyConfig
) -> GuardTensors:
    keys, rows = read_segment_keys(base, edited, tokens, key_config)
    whitening = whitening_of(keys[torch.tensor([named[row][1] == "fit" for row in rows.tolist()])])
    return GuardTensors(*(t.numpy() for t in (keys, rows, whitening.mean, whitening.axes, whitening.scales)))


def replace_guard_splits(guard: Guard, new: NewGuard) -> NewGuard:
    """A guard whose theta is set by, and reported on, the prompts of another: those that its neurons were made with
    stay, and so does the whitening. Prompts that stood guard before serve for neither: they are known already.

    Raises `UsageError` if too few are left.
    """
    known = {prompt.prompt for prompt in guard.prompts}
    fit = [place for place, prompt in enumerate(guard.prompts) if prompt.split == "fit"]
    fresh = [place for place, (prompt, _split, _source) in enumerate(new.prompts) if prompt not in known]
    if len(fresh) < FEWEST:
        raise UsageError(f"{len(fresh)} of these prompts did not stand guard before: at least {FEWEST} are needed")
    old_keys, old_rows = _of(guard.tensors, fit)
    new_keys, new_rows = _of(new.tensors, fresh)
    tensors = GuardTensors(
        np.concatenate([old_keys, new_keys]),
        np.concatenate([old_rows, new_rows + len(fit)]),
        guard.tensors.mean,
        guard.tensors.axes,
        guard.tensors.scales,
    )
    kept = [(guard.prompts[place].prompt, "fit", guard.prompts[place].source) for place in fit]
    splits = [(new.prompts[place][0], new.prompts[place][1], new.prompts[place][2]) for place in fresh]
    added = [(prompt, "report" if split == "report" else "calibration", source) for prompt, split, source in splits]
    return NewGuard(kept + added, tensors)


def _of(tensors: GuardTensors, prompts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Keys of some prompts, and which of these each belongs to."""
    mine = np.isin(tensors.rows, prompts)
    place_of = {row: place for place, row in enumerate(prompts)}
    return tensors.keys[mine], np.array([place_of[row] for row in tensors.rows[mine]], np.int64)


def whitening_in(guard: Guard) -> Whitening:
    """The whitening that a guard's fit split gave."""
    return Whitening(*(torch.from_numpy(getattr(guard.tensors, name)) for name in ("mean", "axes", "scales")))


def read_segment_keys(
    base: Base, edited: EditedLayer, sequences: Sequence[Sequence[int]], key_config: KeyConfig
) -> tuple[Tensor, Tensor]:
    """Keys (n, h) of token sequences and of their splits, on the CPU, and which sequence each belongs to (n,)."""
    found = []
    for start in range(0, len(sequences), BATCH):
        ids, mask = padded(sequences[start : start + BATCH], 0)
        keys, rows = read_segments(base.model, edited.down_proj, ids.to(base.device), mask.to(base.device), key_config)
        found.append((keys.cpu(), rows + start))
    return torch.cat([keys for keys, _rows in found]), torch.cat([rows for _keys, rows in found])


def mean_cosine(guard: Guard) -> float:
    """The mean cosine of the keys of different guard prompts: near 1, the last token says little of a prompt."""
    keys = torch.nn.functional.normalize(torch.from_numpy(guard.tensors.keys[: len(guard.prompts)]), dim=1)
    count = len(keys)
    return float(((keys.sum(dim=0) ** 2).sum() - count) / (count * (count - 1)))
