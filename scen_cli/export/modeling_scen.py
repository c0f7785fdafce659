"""A base with its edits, as `transformers` loads it from an exported folder.

`scen export` copies this file, and `patch.py` beside it, into the folder; `LlamaForCausalLM`
becomes the base's own class. Nothing of scen needs to be installed there.

- `model.generate(**inputs)` and pipelines: each row is routed once, at its last prompt token.
- `model(input_ids, attention_mask)`: the same, reading the route at each row's last real token.
  Give `prompt_lengths` (rows,) when the rows also hold an answer after their prompt.
- `from_pretrained(FOLDER, base=WHERE)`, of a folder without the base's weights: where the base is, a folder or a hub
  id; otherwise the environment's `SCEN_BASE`, or what `config.scen["base"]` names. Its files must have the digest that
  the edits were made with.
- `experts` (rows,), to either: the choice outright, an index into `config.scen["edits"]`, or -1
  for the base.
- `model(new_ids, past_key_values=cache)`: the experts that filled the cache go on.
- `torch.compile` of a forward of your own is not supported: it can leave the experts out unsaid.
"""

from __future__ import annotations

import copy
import inspect
import os
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, GenerationConfig, LlamaForCausalLM
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import cached_file

from scen_cli.model.device import device_of
from scen_cli.model.digest import digest_of
from scen_cli.model.expert_stack import ExpertStack
from scen_cli.model.keys import KeyConfig, positions_of
from scen_cli.model.patch import Patch, mask_of
from scen_cli.model.routing import Routing, Whitening
from scen_cli.model.subject_filter import SubjectFilter


def _with_parameters(function: Any, *names: str) -> inspect.Signature:
    """The function's signature with these optional keyword parameters added."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    return signature.replace(parameters=[*parameters, *added, *rest])


def _base_folder(told: dict[str, Any], where: str | None) -> Path:
    """The folder of the base that a patch was made for. Raises `ValueError` if its weights are not the same."""
    name = where or os.environ.get("SCEN_BASE") or told["name"]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        revision = told["revision"] if name == told["name"] else None
        wanted = ["*.safetensors", "*.safetensors.index.json", "*.json"]
        unwanted = ["consolidated*", "original/*"]  # other copies of the same weights
        found = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted)
        folder = Path(found)
    if digest_of(folder) != told["digest"]:
        raise ValueError(f"the weights in `{folder}` are not those that these edits were made for: another digest")
    return folder


def _at(device: torch.device, bank: StoredBank) -> StoredBank:
    """The bank on a device, wherever a device map has put it."""
    if not any(tensor.is_meta for tensor in bank.parameters()):
        return bank.to(device)
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import align_module_device

    tensors = {}
    for prefix, module in bank.named_modules():
        with align_module_device(module):
            for name, tensor in module.named_parameters(prefix, recurse=False):
                tensors[name] = tensor.detach().to(device, copy=True)
    remove_hook_from_module(bank, recurse=True)
    bank.load_state_dict(tensors, assign=True)
    return bank


_BASE_PARAMETERS = list(inspect.signature(LlamaForCausalLM.forward).parameters)[1:]  # without `self`


PATCH_FILE = "scen.safetensors"


class StoredBank(nn.Module):
    """W_merge `neurons` (t, h) and their `biases` (t,), the whitening's tensors (`axes` is empty if there is
    none), and the experts, in the checkpoint itself: low-rank ones stacked, full ones each of the shape of the weight
    it stands in for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        edits, forms, ranks = len(settings["edits"]), settings["subjects"], settings["ranks"]
        (d, h_in), h, axes = (settings[name] for name in ("expert_shape", "h", "axes"))
        self.subject_filter = SubjectFilter(forms) if any(forms) else None

        def stored(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(size), requires_grad=False)

        self.neurons, self.biases = stored(edits, h), stored(edits)
        self.mean, self.axes, self.scales = stored(h), stored(axes, h), stored(axes)
        self.lora_A, self.lora_B = stored(sum(ranks), h_in), stored(sum(ranks), d)
        self.full = nn.ParameterDict({str(row): stored(d, h_in) for row, rank in enumerate(ranks) if rank == 0})
        self._ranks = ranks

    def halve(self) -> None:
        """Low-rank experts as the file has them, and in half the memory: they are computed with in float32."""
        for stacked in (self.lora_A, self.lora_B):
            stacked.data = stacked.data.half()

    @property
    def whitening(self) -> Whitening | None:
        return Whitening(self.mean, self.axes, self.scales) if len(self.axes) else None

    @cached_property
    def experts(self) -> ExpertStack:
        """Made when first asked for: by then the parameters hold what the file says."""
        return ExpertStack(self.lora_A, self.lora_B, torch.tensor(self._ranks), lambda row: self.full[str(row)])


class ScenForCausalLM(LlamaForCausalLM):
    """The base class, with SCEN's routing around `forward` and `generate`."""

    _auto_class = "AutoModelForCausalLM"  # `save_pretrained` is to write these files of code too

    def __init__(self, config: Any) -> None:
        told = getattr(config, "rope_parameters", None) or {}
        if int(transformers.__version__.split(".")[0]) < 5 and (
            told.get("rope_type", "default") != "default" or told.get("rope_theta", 10000.0) != config.rope_theta
        ):
            raise ValueError(
                "transformers 4 misreads this base's rotary embedding, as 5 has written it: load it with 5"
            )
        super().__init__(config)
        if config.scen.get("base") is None:  # else `from_pretrained` attaches what it read from a file of its own
            self._attach(StoredBank(config.scen))

    def _attach(self, bank: StoredBank) -> None:
        settings = self.config.scen
        self.scen = bank
        if (before := getattr(self, "_patch", None)) is not None:
            before.detach()
        # Said here, not of the class: transformers 4 looks for the module while the base class is made.
        self._keep_in_fp32_modules_strict = {*(getattr(self, "_keep_in_fp32_modules_strict", None) or ()), "scen"}
        projection, down_proj = (self.get_submodule(settings[name]) for name in ("module", "keys_at"))
        read = dict(settings["key_config"])
        for name in ("start", "opening", "closing"):
            read[name] = tuple(read[name])
        key_config = KeyConfig(**{**read, "sentence_ends": frozenset(read["sentence_ends"])})
        self._patch = Patch(
            projection,
            down_proj,
            self.scen,
            Routing(settings["theta"], settings["cosine"], key_config, settings["own_activation_floor"]),
        )

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, base: str | None = None, **options: Any) -> Any:
        """As ever; if the folder is without the base's weights, they are taken from the base (`base`: where it is)."""
        config = options.get("config")
        if config is None:
            config = options["config"] = cls.config_class.from_pretrained(folder)
        if (how := config.scen.get("quantization")) is not None:  # keys are what they were with the base so held
            options.setdefault("quantization_config", BitsAndBytesConfig(**how))
        told = config.scen.get("base")
        if told is None:
            loaded = super().from_pretrained(folder, *args, **options)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            where = device_of(model.get_submodule(config.scen["module"]))
            model._attach(_at(where, model.scen))  # again: modules may have others in their places, quantised ones
            model.scen.halve()
            return loaded
        held_so = getattr(config, "quantization_config", None) is not None  # by the base's own checkpoint
        hub = {name: options.pop(name, None) for name in ("revision", "token", "cache_dir")}
        known = {name: value for name, value in hub.items() if value is not None}
        patch_file = cached_file(folder, PATCH_FILE, **known)
        loaded = super().from_pretrained(_base_folder(told, base), *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        bank = StoredBank(config.scen)
        bank.load_state_dict({name.removeprefix("scen."): tensor for name, tensor in load_file(patch_file).items()})
        bank.halve()
        model._attach(bank.to(device_of(model.get_submodule(config.scen["module"]))))
        model.name_or_path, model._held_so = str(folder), held_so
        model.generation_config = GenerationConfig.from_pretrained(folder, **known)
        return loaded

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """As ever; without the base's weights, if they came from elsewhere."""
        if self.config.scen.get("base") is None:
            return super().save_pretrained(save_directory, **options)
        if options.get("push_to_hub"):
            raise ValueError("save it first, then upload the folder")
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        custom_object_save(self, save_directory, config=self.config)
        config = copy.deepcopy(self.config)
        if not self._held_so and hasattr(config, "quantization_config"):
            del config.quantization_config  # it is of how this model was loaded, not of the base's files
        config.save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)
        tensors = {f"scen.{name}": tensor.contiguous() for name, tensor in self.scen.state_dict().items()}
        save_file(tensors, Path(save_directory) / PATCH_FILE, {"format": "pt"})
        return None

    def generate(self, inputs: Tensor | None = None, *args: Any, experts: Tensor | None = None, **options: Any) -> Any:
        """`generate` as ever; `experts` (rows,) overrides the routing."""
        input_ids = inputs if inputs is not None else options.pop("input_ids", None)
        if input_ids is None:
            raise ValueError("give `input_ids`: a prompt's edit is found from its tokens")
        mask = options.pop("attention_mask", None)

        def plain_generate(**rest: Any) -> Any:
            return super(ScenForCausalLM, self).generate(rest.pop("input_ids"), *args, **rest)

        out, _choice = self._patch.generate(self, plain_generate, input_ids, mask, experts, **options)
        return out

    def forward(
        self, *args: Any, experts: Tensor | None = None, prompt_lengths: Tensor | None = None, **options: Any
    ) -> Any:
        """One forward pass; how each row's edit is found is said at the top of this file."""
        options.update(zip(_BASE_PARAMETERS, args, strict=False))
        if self._patch.in_use:  # inside `generate`, or while keys are being read
            return super().forward(**options)
        mask, cache = options.get("attention_mask"), options.get("past_key_values")
        own_positions = options.get("position_ids") is not None
        if mask is not None and not (cache is not None and cache.get_seq_length()) and not own_positions:
            options["position_ids"] = positions_of(mask)
        with self._carrying(experts, prompt_lengths, options, own_positions) as carried:
            out = super().forward(**options)
        self._patch.remember(getattr(out, "past_key_values", None), carried.choice)
        return out

    # `generate` asks the signature what a model can take (positions, logits to keep): show the base's own.
    forward.__signature__ = _with_parameters(LlamaForCausalLM.forward, "experts", "prompt_lengths")  # type: ignore[attr-defined]

    def _carrying(
        self,
        experts: Tensor | None,
        lengths: Tensor | None,
        options: dict[str, Any],
        own_positions: bool,
    ) -> AbstractContextManager[Any]:
        """The block in which a forward runs: with these experts, those that filled its cache, or those its prompts
        call. They are decided on inside it if it sees the prompts as they are read to decide: without their padding, at
        positions that count from 0."""
        input_ids, mask, cache = (options.get(name) for name in ("input_ids", "attention_mask", "past_key_values"))
        if experts is None and cache is not None and cache.get_seq_length():
            known = self._patch.choice_of(cache)
            if known is None:
                raise ValueError("this cache was filled elsewhere: give `experts`, one per row")
            experts = torch.tensor(known)
        if experts is not None:
            self._patch.check(experts, len(options["inputs_embeds"] if input_ids is None else input_ids))
            return self._patch.using(experts)
        if input_ids is None:
            raise ValueError("without `input_ids` no edit can be found: give `experts`, one per row")
        as_read = mask is not None and mask.dim() == 2 and not own_positions
        if mask is None or mask.dim() != 2:
            mask = mask_of(self, input_ids)
            as_read = not own_positions and bool(mask.all())
        if lengths is not None:  # count each row's real tokens, and hide those after its prompt
            mask = mask * (mask.cumsum(dim=1) <= lengths.to(mask.device)[:, None])
        if as_read:
            return self._patch.deciding(self, input_ids, mask)
        return self._patch.using(self._patch.route(self, input_ids, mask).choice)
