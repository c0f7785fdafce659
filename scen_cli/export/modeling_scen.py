"""A base model with its edits, for `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`.

`scen export` copies this file into the folder, with the files that it imports (`patch.py` and others). In the copy
`LlamaForCausalLM` is replaced by the base's class. `scen` itself is not needed to load the folder.

How a prompt finds its edit: the indexing neurons compare the prompt's key, an activation of one layer at the last
token, with the keys of the edits. If the best match passes the threshold theta, the expert of that edit replaces the
layer's down projection for the whole sequence. Otherwise the base answers. `patch.py` has the details.

- `model.generate(**inputs)`, pipelines: each row is routed once, at its last prompt token.
- `model(input_ids, attention_mask)`: each row is routed at its last real token. If the rows also contain an answer,
  pass `prompt_lengths` (rows,): the number of real tokens before the answer.
- `experts` (rows,), for both: skip the routing. Each entry is an index into `config.scen["edits"]`, or -1 for the base.
- `model(new_ids, past_key_values=cache)`: uses the experts that filled the cache.
- `from_pretrained(FOLDER, base=BASE)`, for a folder without the base's weights: the folder or hub id of the base. The
  default is the environment variable `SCEN_BASE`, then the name in `config.scen["base"]`. The digest of the weights is
  checked.
- Do not use `torch.compile` on a forward of your own: it can silently leave out the experts.
"""

from __future__ import annotations

import copy
import inspect
import os
from contextlib import AbstractContextManager
from functools import cached_property
from importlib import import_module
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
from scen_cli.model.keys import KeyConfig, mask_of, positions_of
from scen_cli.model.patch import Patch
from scen_cli.model.routing import Routing, Whitening
from scen_cli.model.subject_filter import SubjectFilter

PATCH_FILE = "scen.safetensors"  # the tensors of `StoredBank`, in a folder without the base's weights


class StoredBank(nn.Module):
    """The neurons and experts that a `Patch` uses, as parameters of the checkpoint (t edits, keys of size h).

    - `neurons` (t, h) and `biases` (t,): W_merge.
    - `mean` (h,), `axes` (r, h), `scales` (r,): the whitening of keys; r = 0 if there is none.
    - `lora_A` (sum of ranks, h_in), `lora_B` (sum of ranks, d): the low-rank experts, stacked.
    - `full.{row}` (d, h_in): the full experts.
    - `pieces` (bytes,) and `piece_ends` (v,): the text of each token id, to find subjects in prompts.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        edits, ranks = len(settings["edits"]), settings["ranks"]
        (d, h_in), h, r = (settings[name] for name in ("expert_shape", "ffn_width", "whitening_rank"))

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape), requires_grad=False)

        self.neurons, self.biases = parameter(edits, h), parameter(edits)
        self.mean, self.axes, self.scales = parameter(h), parameter(r, h), parameter(r)
        self.lora_A, self.lora_B = parameter(sum(ranks), h_in), parameter(sum(ranks), d)
        self.full = nn.ParameterDict({str(row): parameter(d, h_in) for row, rank in enumerate(ranks) if rank == 0})
        self.pieces = nn.Parameter(torch.empty(settings["piece_bytes"], dtype=torch.uint8), requires_grad=False)
        self.piece_ends = nn.Parameter(torch.empty(settings["piece_count"], dtype=torch.int32), requires_grad=False)
        self._ranks, self._subjects = ranks, settings["subjects"]

    def to_half(self) -> None:
        """Store the low-rank experts in float16, as in the file: half the memory. They are computed in float32."""
        for stacked in (self.lora_A, self.lora_B):
            stacked.data = stacked.data.half()

    @property
    def whitening(self) -> Whitening | None:
        return Whitening(self.mean, self.axes, self.scales) if len(self.axes) else None

    @cached_property
    def subject_filter(self) -> SubjectFilter | None:
        """Created at the first use, after the parameters are loaded."""
        text = bytes(self.pieces.to(device="cpu", dtype=torch.uint8).tolist())
        ends = self.piece_ends.to(device="cpu", dtype=torch.int64).tolist()
        pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return SubjectFilter(self._subjects, pieces) if any(self._subjects) else None

    @cached_property
    def experts(self) -> ExpertStack:
        """Created at the first use, after the parameters are loaded."""
        return ExpertStack(self.lora_A, self.lora_B, torch.tensor(self._ranks), lambda row: self.full[str(row)])


def _with_parameters(function: Any, *names: str) -> inspect.Signature:
    """The function's signature plus these optional keyword parameters."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    return signature.replace(parameters=[*parameters, *added, *rest])


_BASE_PARAMETERS = list(inspect.signature(LlamaForCausalLM.forward).parameters)[1:]  # without `self`


class ScenForCausalLM(LlamaForCausalLM):
    """The base's class with SCEN's routing in `forward` and `generate`."""

    _auto_class = "AutoModelForCausalLM"  # so that `save_pretrained` also writes the code files

    def __init__(self, config: Any) -> None:
        rope = getattr(config, "rope_parameters", None) or {}
        if int(transformers.__version__.split(".")[0]) < 5 and (
            rope.get("rope_type", "default") != "default" or rope.get("rope_theta", 10000.0) != config.rope_theta
        ):
            raise ValueError("transformers 4 misreads the rotary embedding in this config: use transformers 5")
        super().__init__(config)
        if config.scen.get("base") is None:  # otherwise `from_pretrained` attaches the tensors of `PATCH_FILE`
            self._attach(StoredBank(config.scen))

    def _attach(self, bank: StoredBank) -> None:
        """Put the patch on the edited layer. A second call replaces the first patch."""
        settings = self.config.scen
        self.scen = bank
        if (previous := getattr(self, "_patch", None)) is not None:
            previous.detach()
        # Set on the instance: transformers 4 looks for the module `scen` while it creates the base's class.
        self._keep_in_fp32_modules_strict = {*(getattr(self, "_keep_in_fp32_modules_strict", None) or ()), "scen"}
        projection, down_proj = (self.get_submodule(settings[name]) for name in ("module", "key_module"))
        fields = dict(settings["key_config"])  # JSON has lists where `KeyConfig` has tuples and a set
        fields |= {name: tuple(fields[name]) for name in ("start", "opening", "closing", "mask")}
        fields["turns"] = tuple((tuple(turn), tuple(glue)) for turn, glue in fields["turns"])
        key_config = KeyConfig(**{**fields, "sentence_ends": frozenset(fields["sentence_ends"])})
        routing = Routing(settings["theta"], settings["cosine"], key_config, settings["own_activation_floor"])
        self._patch = Patch(projection, down_proj, bank, routing)

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, base: str | None = None, **options: Any) -> Any:
        """As in transformers. `base` is the folder or hub id of the base, for a folder without its weights."""
        config = options.get("config")
        if config is None:
            config = options["config"] = cls.config_class.from_pretrained(folder)
        if (quantization := config.scen.get("quantization")) is not None:  # the keys were read with the quantised base
            options.setdefault("quantization_config", BitsAndBytesConfig(**quantization))
        if config.scen.get("base") is not None:
            return cls._load_patch(folder, config, base, args, options)
        loaded = super().from_pretrained(folder, *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Attach again: quantisation and device maps replace modules while loading.
        model._attach(_bank_on(device_of(model.get_submodule(config.scen["module"])), model.scen))
        model.scen.to_half()
        return loaded

    @classmethod
    def _load_patch(cls, folder: Any, config: Any, base: str | None, args: Any, options: dict[str, Any]) -> Any:
        """Load the base from elsewhere, and the edits from `PATCH_FILE`."""
        base_is_quantized = getattr(config, "quantization_config", None) is not None  # in its own checkpoint
        hub_options = {name: options.pop(name, None) for name in ("revision", "token", "cache_dir")}
        hub_options = {name: value for name, value in hub_options.items() if value is not None}
        patch_file = cached_file(folder, PATCH_FILE, **hub_options)
        loaded = super().from_pretrained(_base_folder(config.scen["base"], base), *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        bank = StoredBank(config.scen)
        bank.load_state_dict({name.removeprefix("scen."): tensor for name, tensor in load_file(patch_file).items()})
        bank.to_half()
        model._attach(bank.to(device_of(model.get_submodule(config.scen["module"]))))
        model.name_or_path, model._base_is_quantized = str(folder), base_is_quantized
        model.generation_config = GenerationConfig.from_pretrained(folder, **hub_options)
        return loaded

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """As in transformers, but without the base's weights if the model was loaded from a folder without them."""
        if self.config.scen.get("base") is None:
            return super().save_pretrained(save_directory, **options)
        if options.get("push_to_hub"):
            raise ValueError("`push_to_hub` is not supported here: save the folder, then upload it")
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        custom_object_save(self, save_directory, config=self.config)
        config = copy.deepcopy(self.config)
        if not self._base_is_quantized and hasattr(config, "quantization_config"):
            del config.quantization_config  # describes how this model was loaded, not the base's files
        config.save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)
        tensors = {f"scen.{name}": tensor.contiguous() for name, tensor in self.scen.state_dict().items()}
        save_file(tensors, Path(save_directory) / PATCH_FILE, {"format": "pt"})
        return None

    def generate(self, inputs: Tensor | None = None, *args: Any, experts: Tensor | None = None, **options: Any) -> Any:
        """As in transformers. `experts` (rows,) replaces the routing."""
        input_ids = inputs if inputs is not None else options.pop("input_ids", None)
        if input_ids is None:
            raise ValueError("give `input_ids`: the routing needs the prompt's tokens")
        mask = options.pop("attention_mask", None)

        def base_generate(**rest: Any) -> Any:
            return super(ScenForCausalLM, self).generate(rest.pop("input_ids"), *args, **rest)

        out, _choice = self._patch.generate(self, base_generate, input_ids, mask, experts, **options)
        return out

    def forward(
        self, *args: Any, experts: Tensor | None = None, prompt_lengths: Tensor | None = None, **options: Any
    ) -> Any:
        """One forward pass. `experts` and `prompt_lengths`: see the top of this file."""
        options.update(zip(_BASE_PARAMETERS, args, strict=False))
        if self._patch.in_use:  # called by `generate`, or to read keys
            return super().forward(**options)
        mask, cache = options.get("attention_mask"), options.get("past_key_values")
        own_positions = options.get("position_ids") is not None
        if mask is not None and not (cache is not None and cache.get_seq_length()) and not own_positions:
            options["position_ids"] = positions_of(mask)
        with self._experts_in_use(experts, prompt_lengths, options, own_positions) as route:
            out = super().forward(**options)
        self._patch.remember(getattr(out, "past_key_values", None), route.choice)
        return out

    # `generate` reads the signature to see which arguments the model takes: show those of the base.
    forward.__signature__ = _with_parameters(LlamaForCausalLM.forward, "experts", "prompt_lengths")  # type: ignore[attr-defined]

    def _experts_in_use(
        self, experts: Tensor | None, prompt_lengths: Tensor | None, options: dict[str, Any], own_positions: bool
    ) -> AbstractContextManager[Any]:
        """The context for one forward: with the given `experts`, those that filled the cache, or the routed ones."""
        input_ids, mask, cache = (options.get(name) for name in ("input_ids", "attention_mask", "past_key_values"))
        if experts is None and cache is not None and cache.get_seq_length():
            choice = self._patch.choice_of(cache)
            if choice is None:
                raise ValueError("another model filled this cache: give `experts`, one per row")
            experts = torch.tensor(choice)
        if experts is not None:
            self._patch.check(experts, len(options["inputs_embeds"] if input_ids is None else input_ids))
            return self._patch.using(experts)
        if input_ids is None:
            raise ValueError("the routing needs `input_ids`: give them, or give `experts`, one per row")
        # This forward itself can read the keys if it masks the padding and counts positions from 0.
        reads_keys = mask is not None and mask.dim() == 2 and not own_positions
        if mask is None or mask.dim() != 2:
            mask = mask_of(self, input_ids)
            reads_keys = not own_positions and bool(mask.all())
        if prompt_lengths is not None:  # mask the tokens after each row's prompt
            mask = mask * (mask.cumsum(dim=1) <= prompt_lengths.to(mask.device)[:, None])
        if reads_keys:
            return self._patch.deciding(self, input_ids, mask)
        return self._patch.using(self._patch.route(self, input_ids, mask).choice)


def _base_folder(settings: dict[str, Any], base: str | None) -> Path:
    """Find the base that the edits were made with. Raises `ValueError` if its weights differ."""
    name = base or os.environ.get("SCEN_BASE") or settings["name"]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        revision = settings["revision"] if name == settings["name"] else None
        files = ["*.safetensors", "*.safetensors.index.json", "*.json"]
        copies = ["consolidated*", "original/*"]  # other copies of the same weights
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files, ignore_patterns=copies))
    if digest_of(folder) != settings["digest"]:
        raise ValueError(f"the edits were made with other weights than those in `{folder}`: the digest differs")
    return folder


def _bank_on(device: torch.device, bank: StoredBank) -> StoredBank:
    """Move the bank to a device, also from disk or memory where a device map offloaded it."""
    if not any(tensor.is_meta for tensor in bank.parameters()):
        return bank.to(device)
    # Not an import statement: transformers would then require accelerate before it loads any export.
    hooks, utils = import_module("accelerate.hooks"), import_module("accelerate.utils")
    tensors = {}
    for prefix, module in bank.named_modules():
        with utils.align_module_device(module):
            for name, tensor in module.named_parameters(prefix, recurse=False):
                tensors[name] = tensor.detach().to(device, copy=True)
    hooks.remove_hook_from_module(bank, recurse=True)
    bank.load_state_dict(tensors, assign=True)
    return bank
