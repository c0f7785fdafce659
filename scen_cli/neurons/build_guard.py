"""Build the guard: prompts that must keep the base's answer (from a file, or sampled from the base) and their keys."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from scen_cli.data.question_bank import bank_questions
from scen_cli.data.suites import read_prompts
from scen_cli.data.user_cache import cached_texts
from scen_cli.errors import UsageError
from scen_cli.model.base import Base
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.digest import digest_of
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.generation import Progress, no_progress, room_for_answer, sample_prompts
from scen_cli.model.keys import KeyConfig
from scen_cli.model.known_bases import is_demo
from scen_cli.model.quantization import is_whole
from scen_cli.model.routing import Whitening
from scen_cli.model.template import Template
from scen_cli.neurons.neuron_fit import whitening_of
from scen_cli.project.guard import QUESTION_BANK, SELF_WRITTEN, SHARES, Guard, GuardTensors, NewGuard
from scen_cli.recipe import Recipe

BANK_QUESTIONS, SAMPLED_BESIDE_BANK = 1200, 32  # the default guard
SAMPLED_PROMPTS = 2000  # the guard of the demo base, whose world is invented: the bank knows nothing of it
MIN_PROMPTS = 50
ALIKE = 0.5  # from this mean cosine of different prompts' keys on, keys distinguish prompts badly


def key_config_of(template: Template, recipe: Recipe) -> KeyConfig:
    """How this recipe reads keys of prompts in this template."""
    if not recipe.route_segments:
        return KeyConfig(recipe.key_pooling, mask=template.mask_ids() if recipe.masks_subjects else ())
    frame, mask = template.frame(), template.mask_ids() if recipe.masks_subjects else ()
    ends = template.sentence_ends()
    return KeyConfig(recipe.key_pooling, True, frame.start, frame.opening, frame.closing, ends, mask, frame.turns)


def make_guard(
    base: Base,
    template: Template,
    edited: EditedLayer,
    key_config: KeyConfig,
    seed: int,
    file: Path | None,
    progress: Progress = no_progress,
) -> NewGuard:
    """Build a guard from a file, or the default guard.

    Raises:
        UsageError: As `unedited_prompts`.
    """
    source = str(file.resolve()) if file else SELF_WRITTEN if is_demo(base.folder) else QUESTION_BANK
    prompts = unedited_prompts(base, template, seed, file, progress)
    return guard_from(prompts, source, base, template, edited, key_config, seed, progress)


def unedited_prompts(
    base: Base, template: Template, seed: int, file: Path | None, progress: Progress = no_progress
) -> list[str]:
    """Prompts of a file, or the default ones, without those that exceed the base's context.

    The default prompts are questions of the bank, which are like the questions that people edit, and a few prompts
    that the base samples.

    Raises:
        UsageError: The file cannot be read, or there are fewer than `MIN_PROMPTS` prompts.
    """
    if file:
        prompts = list(dict.fromkeys(read_prompts(file)))
    elif is_demo(base.folder):
        prompts = _sampled_prompts(base, template, SAMPLED_PROMPTS, seed, progress)
    else:
        bank = bank_questions(BANK_QUESTIONS, seed)
        prompts = list(dict.fromkeys(bank + _sampled_prompts(base, template, SAMPLED_BESIDE_BANK, seed, progress)))
    lengths = [len(template.prompt_ids(prompt)) for prompt in prompts]
    prompts = [
        prompt
        for prompt, length in zip(prompts, lengths, strict=True)
        if length and room_for_answer(base.model, length, 1) > 0
    ]
    if len(prompts) < MIN_PROMPTS:
        raise UsageError(
            (f"`{file}` has" if file else "the default guard has")
            + f" {len(prompts)} usable guard prompts: a guard needs at least {MIN_PROMPTS}",
            hint="`--guard FILE` accepts any file of prompts that edits must not change; recipe `key` needs no guard",
        )
    return prompts


def _sampled_prompts(base: Base, template: Template, count: int, seed: int, progress: Progress) -> list[str]:
    """Sample prompts from the base. Cached, unless the base is quantised or partly offloaded."""

    def sample() -> list[str]:
        return sample_prompts(base, template, count, seed, min(count, MIN_PROMPTS), progress)

    if not is_whole(base.model):
        return sample()
    base_id = [digest_of(base.folder), str(base.model.dtype), str(base.device), torch.__version__]
    return cached_texts("sampled-prompts", [base_id, template.form, count, seed], sample)


def guard_from(
    prompts: Sequence[str],
    source: str,
    base: Base,
    template: Template,
    edited: EditedLayer,
    key_config: KeyConfig,
    seed: int,
    progress: Progress = no_progress,
) -> NewGuard:
    """Split prompts at random (seeded) into `SHARES` and read their keys.

    Neurons may be fitted on the split `fit`; theta is calibrated on `calibration`; rates are reported on `report`.
    """
    prompts = list(prompts)
    random.Random(seed).shuffle(prompts)
    ends = dict(zip(SHARES, accumulate(SHARES.values()), strict=True))
    rows = []
    for index, prompt in enumerate(prompts):
        split = next(split for split, end in ends.items() if index < end * len(prompts))
        rows.append((prompt, split, source))
    return _with_keys(rows, base, template, edited, key_config, progress)


def reread_keys(guard: Guard, base: Base, template: Template, edited: EditedLayer, key_config: KeyConfig) -> NewGuard:
    """The same prompts and splits, with keys read in another template or at another layer."""
    rows = [(prompt.prompt, prompt.split, prompt.source) for prompt in guard.prompts]
    return _with_keys(rows, base, template, edited, key_config)


def _with_keys(
    rows: list[tuple[str, str, str]],
    base: Base,
    template: Template,
    edited: EditedLayer,
    key_config: KeyConfig,
    progress: Progress = no_progress,
) -> NewGuard:
    """Read the keys of guard rows (prompt, split, source), and compute the whitening from the split `fit`."""
    tokens = [template.prompt_ids(prompt) for prompt, _split, _source in rows]
    keys, prompt_of_key = read_segment_keys(base, edited, tokens, key_config, progress)
    whitening = whitening_of(keys[torch.tensor([rows[prompt][1] == "fit" for prompt in prompt_of_key.tolist()])])
    return NewGuard(rows, GuardTensors(keys.numpy(), prompt_of_key.numpy(), *_arrays(whitening)))


def with_whitening(guard: NewGuard, whitening: Whitening) -> NewGuard:
    """The guard with another whitening."""
    return NewGuard(guard.prompts, GuardTensors(guard.tensors.keys, guard.tensors.rows, *_arrays(whitening)))


def _arrays(whitening: Whitening) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return whitening.mean.numpy(), whitening.axes.numpy(), whitening.scales.numpy()


def replace_guard_splits(guard: Guard, new: NewGuard) -> NewGuard:
    """Replace the splits `calibration` and `report` of a guard by the prompts of another.

    The split `fit` and the whitening stay, because the neurons were made with them. Prompts of the old guard are
    dropped from the new one: theta must be calibrated on prompts that no neuron has seen.

    Raises:
        UsageError: Fewer than `MIN_PROMPTS` new prompts are left.
    """
    known = {prompt.prompt for prompt in guard.prompts}
    fit = [index for index, prompt in enumerate(guard.prompts) if prompt.split == "fit"]
    fresh = [index for index, (prompt, _split, _source) in enumerate(new.prompts) if prompt not in known]
    if len(fresh) < MIN_PROMPTS:
        raise UsageError(
            f"{len(fresh)} of these prompts are not in the present guard: a new one needs at least {MIN_PROMPTS}"
        )
    rows = [(guard.prompts[index].prompt, "fit", guard.prompts[index].source) for index in fit]
    for index in fresh:
        prompt, split, source = new.prompts[index]
        rows.append((prompt, "report" if split == "report" else "calibration", source))
    old_keys, old_prompts = _select_keys(guard.tensors, fit)
    new_keys, new_prompts = _select_keys(new.tensors, fresh)
    old = guard.tensors
    keys, prompt_of_key = np.concatenate([old_keys, new_keys]), np.concatenate([old_prompts, new_prompts + len(fit)])
    return NewGuard(rows, GuardTensors(keys, prompt_of_key, old.mean, old.axes, old.scales))


def _select_keys(tensors: GuardTensors, prompts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The keys of these prompts, and for each key the index into `prompts`."""
    selected = np.isin(tensors.rows, prompts)
    new_index = {prompt: index for index, prompt in enumerate(prompts)}
    return tensors.keys[selected], np.array([new_index[prompt] for prompt in tensors.rows[selected]], np.int64)


def whitening_in(guard: Guard) -> Whitening:
    """The whitening stored with a guard."""
    return Whitening(*(torch.from_numpy(getattr(guard.tensors, name)) for name in ("mean", "axes", "scales")))


def mean_cosine(guard: Guard) -> float:
    """The mean cosine of the keys of different guard prompts. Near 1: the last token says little about a prompt."""
    keys = torch.nn.functional.normalize(torch.from_numpy(guard.tensors.keys[: len(guard.prompts)]), dim=1)
    count = len(keys)
    return float(((keys.sum(dim=0) ** 2).sum() - count) / (count * (count - 1)))
