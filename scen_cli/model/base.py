"""Load a base model: aliases, the hub, local folders, and the check that its weights have not changed.

Weights are read from safetensors only. Code from a checkpoint never runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from scen_cli.errors import ScenError, UsageError
from scen_cli.model.device import device_of
from scen_cli.model.digest import digest_of
from scen_cli.model.gguf_base import converted_folder
from scen_cli.model.known_bases import DEMO as DEMO
from scen_cli.model.known_bases import KNOWN, KnownBase
from scen_cli.model.quantization import loading_options

_FETCHED_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja", "*.txt"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INDEX = "model.safetensors.index.json"
SAMPLED_PAGES, PAGE = 64, 4096
_PACKED = 8  # a quantised checkpoint may pack this many values into one


@dataclass(frozen=True)
class Base:
    """A loaded, frozen base model with its tokenizer and the folder of its files."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    @property
    def device(self) -> torch.device:
        """The device that inputs must be on."""
        return device_of(self.model)


def folder_of(name: str, revision: str | None = None, gguf_file: str | None = None) -> Path:
    """The folder with a base's files.

    Args:
        name: An alias, a local folder, a local GGUF file, or a hub id, which is downloaded if it is not in the cache.
        revision: Branch, tag or commit of the hub repository.
        gguf_file: The GGUF file to use, in a folder or repository that has some.

    Raises:
        UsageError: There is no such base, or it has no safetensors weights.
        ScenError: The download failed.
    """
    known = KNOWN.get(name, KnownBase())
    if known.package:
        return converted_folder(known.gguf_file())
    folder = known.folder or Path(name).expanduser()
    if folder.suffix == ".gguf" and folder.is_file():
        return converted_folder(folder)
    if not folder.is_dir():
        folder = _fetch(known.hub or name, revision, [gguf_file] if gguf_file else _FETCHED_FILES)
    if gguf_file:
        if not (folder / gguf_file).is_file():
            raise UsageError(f"`{name}` has no file `{gguf_file}`")
        return converted_folder(folder / gguf_file)
    _refuse_adapter(name, folder)
    if not list(folder.glob("*.safetensors")):
        raise UsageError(
            f"`{name}` has no safetensors weights",
            hint="name one of its GGUF files with `--gguf-file`, or convert it once: "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER)`",
        )
    return folder


def load_base(
    name: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    gguf_file: str | None = None,
) -> Base:
    """Load and freeze a base. It decodes greedily by default, whatever the checkpoint's generation config says.

    Args:
        name: As in `folder_of`.
        revision: As in `folder_of`.
        dtype: `auto` (the checkpoint's own) or a key of `DTYPES`.
        device: As in `pick_device`.
        quantize: `8bit` or `4bit`; None: not quantised.
        device_map: accelerate's device map; ignored unless `device` is `auto`.
        gguf_file: As in `folder_of`.

    Raises:
        UsageError: The base is missing, incomplete, not a causal language model or needs code of its own; or an option
            is unknown or needs a package that is not installed.
    """
    torch_device, folder = pick_device(device), folder_of(name, revision, gguf_file)
    check_files(name, folder)
    tokenizer = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        used_map = device_map if device == "auto" else None
        options = loading_options(folder, DTYPES.get(dtype), torch_device, quantize, used_map)
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES.get(dtype, "auto"),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except UsageError:
        raise
    except Exception as error:  # a damaged file makes any of four libraries raise errors of its own
        if type(error).__name__ == "OutOfMemoryError":
            raise
        if needs_code(folder):
            raise UsageError(
                f"`{name}` needs code of its own, which scen never runs",
                hint="scen edits bases that transformers itself has a class for",
            ) from error
        if tokenizer is None:
            raise UsageError(
                f"`{name}` cannot be loaded: its tokenizer: {_first_line(error)}",
                hint="its folder needs the tokenizer's files, such as tokenizer.json, undamaged",
            ) from error
        raise UsageError(f"`{name}` cannot be loaded: {_first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):  # transformers has filled them with random values
        raise UsageError(f"`{name}` cannot be loaded: {len(missing)} weights are missing, for example `{missing[0]}`")
    model.requires_grad_(False)
    # Keep only the token ids: sampling and penalties that a checkpoint sets would change the base's answers.
    shipped = model.generation_config
    bos = shipped.bos_token_id if isinstance(shipped.bos_token_id, int) else None  # prompts bring their own
    model.generation_config = GenerationConfig(
        bos_token_id=bos, eos_token_id=shipped.eos_token_id, pad_token_id=shipped.pad_token_id
    )
    model.eval()
    if quantize:
        _check_kernels(model, quantize)
    return Base(model if options else model.to(torch_device), tokenizer, folder)


@torch.no_grad()
def _check_kernels(model: PreTrainedModel, quantize: str) -> None:
    """Raise `UsageError` if bitsandbytes cannot multiply this base's matrices here: some CPUs need widths of n x 64."""
    try:
        model(input_ids=torch.ones(1, 1, dtype=torch.long, device=device_of(model)))
    except RuntimeError as error:
        raise UsageError(
            f"bitsandbytes cannot run this base in {quantize} on this device: {_first_line(error)}",
            hint="try `--quantize 8bit`, or another device",
        ) from error


def check_files(name: str, folder: Path) -> None:
    """Refuse a folder that is no checkpoint of a base, whose index points outside it, or whose config claims far more
    weights than it has.

    transformers would load an adapter beside the weights if PEFT is installed, and not otherwise. It would allocate the
    claimed sizes before it compares them with the weights. What else is missing, transformers itself reports.

    Raises:
        UsageError: The checkpoint is refused.
    """
    _refuse_adapter(name, folder)
    if "scen" in _read(folder / "config.json"):
        raise UsageError(
            f"`{name}` is an export of scen: its edits would be hidden in the base of a new project",
            hint="edit the project that it was exported from, or start from that project's base",
        )
    for file in folder.glob("*.safetensors"):
        if not file.is_file():  # reading a pipe would block
            raise UsageError(f"`{name}` cannot be loaded: `{file.name}` is not a file")
    weight_map = _read(folder / INDEX).get("weight_map")
    for file_name in set(weight_map.values()) if isinstance(weight_map, dict) else ():
        if not isinstance(file_name, str) or file_name != Path(file_name).name:
            raise UsageError(f"`{name}` cannot be loaded: its index names weights outside its folder: {file_name!r}")
    config = _read(folder / "config.json")
    text_config = config.get("text_config")
    tensors, values = _count_weights(name, folder)
    for sizes in (config, text_config if isinstance(text_config, dict) else {}):
        layers, width = _size(sizes, "num_hidden_layers", "n_layer"), _size(sizes, "hidden_size", "n_embd")
        others = [_size(sizes, "vocab_size"), _size(sizes, "intermediate_size", "n_inner")]
        if layers > tensors or any(width * other > _PACKED * values for other in others):
            raise UsageError(f"`{name}` cannot be loaded: its config claims far more weights than there are")


def _refuse_adapter(name: str, folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise UsageError(
            f"`{name}` holds a PEFT adapter (`adapter_config.json`): with it, the base is another model",
            hint="merge it into the base (`merge_and_unload()` of PEFT), or move `adapter_*` to a folder of its own",
        )


def needs_code(folder: Path) -> bool:
    """Whether the checkpoint asks to be loaded with code of its own."""
    return any("auto_map" in _read(folder / file) for file in ("config.json", "tokenizer_config.json"))


def _count_weights(name: str, folder: Path) -> tuple[int, int]:
    """The number of tensors in the folder, and the number of their values."""
    shapes: list[list[int]] = []
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="np") as weights:
                shapes += [weights.get_slice(tensor).get_shape() for tensor in weights.keys()]  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UsageError(f"`{name}` cannot be loaded: `{file.name}`: {error}") from error
    return len(shapes), sum(map(prod, shapes))


def _size(sizes: dict[str, Any], *names: str) -> int:
    """The first of these settings that is a number; 1 if none is."""
    return next((sizes[name] for name in names if isinstance(sizes.get(name), int)), 1)


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def pick_device(device: str) -> torch.device:
    """The torch device of a name. `auto`: CUDA, else Apple's MPS, else the CPU.

    Raises:
        UsageError: This machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    names = [name for name, is_available in available.items() if is_available]
    if device == "auto":
        return torch.device(names[0])
    kind, _, number = device.partition(":")
    if kind not in names or (number and not number.isdigit()):
        raise UsageError(f"device `{device}` is not available", hint=f"available: {', '.join(names)}")
    return torch.device(device)


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def files_stamp(folder: Path) -> list[list[Any]]:
    """Name, size, modification time and a sample of each weight file. If it is unchanged, the digest is not recomputed
    each time."""
    return [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns, _sample_of(path)]
        for path in sorted(folder.glob("*.safetensors"))
    ]


def _sample_of(path: Path) -> str:
    """SHA-256 of pages spread over a file: a copy tool or a failing disk can change a file and keep its time."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        for page in range(SAMPLED_PAGES):
            file.seek(max(0, size - PAGE) * page // (SAMPLED_PAGES - 1))
            digest.update(file.read(PAGE))
    return digest.hexdigest()


def check_unchanged(base: Base, settings: Mapping[str, Any], every_byte: bool = False) -> None:
    """Raise `UsageError` if the base's weights are not those that the project was created with.

    Args:
        base: The base.
        settings: The project's settings.
        every_byte: Compare all weights; otherwise only what `files_stamp` says, if that has not changed.
    """
    if not every_byte and files_stamp(base.folder) == settings["files_stamp"]:
        return
    if digest_of(base.folder) != settings["weights_digest"]:
        raise UsageError(
            f"the base's weights in `{base.folder}` have changed since the project was created: "
            "its keys and experts no longer fit",
            hint="restore the base, or create a new project and make the edits again",
        )


def _fetch(repo: str, revision: str | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        copies = ["consolidated*", "original/*"]  # the same weights in other formats
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files, ignore_patterns=copies))
    except HFValidationError as error:
        raise UsageError(
            f"`{repo}` is neither a folder on this machine, nor an alias, nor a hub id",
            hint=f"if a project's base was moved, set `SCEN_BASE=FOLDER`; aliases: {', '.join(KNOWN)}",
        ) from error
    except Exception as error:  # the hub client raises errors of many libraries: offline, gated, unknown
        raise ScenError(
            f"cannot download `{repo}` from the hub: {_first_line(error)}",
            hint="check the name and the connection, run `hf auth login` for a gated base, or pass a local folder",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
