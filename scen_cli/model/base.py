"""Loading a base: aliases, where its files are, and a digest that notices when they change.

Weights are read from safetensors only, and no code from a checkpoint ever runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from scen_cli.errors import ScenError, UsageError
from scen_cli.model.checkpoint_check import check_files, needs_code
from scen_cli.model.device import device_of
from scen_cli.model.digest import digest_of
from scen_cli.model.quantization import loading_options

DEMO = Path(__file__).parent.parent / "demo" / "base"
ALIASES = {
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "llama2-13b": "meta-llama/Llama-2-13b-hf",
    "llama2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "llama2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "scen-zsre-7b": "AuroraX/SCEN_ZsRE_llama2_7b",  # the paper authors' fine-tuned bases
    "scen-hallucination-7b": "AuroraX/SCEN_Hallucination_llama2_7b_base",
}
_WANTED_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja", "*.txt"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Base:
    """A loaded, frozen base and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where its input goes."""
        return device_of(self.model)


def hub_name(name: str) -> str:
    """What a base is called where it is fetched from: an alias's hub id; a folder's path, or a hub id, as it is."""
    return str(DEMO) if name == "demo" else ALIASES.get(name, name)


def folder_of(name: str, revision: str | None = None) -> Path:
    """The folder with a base's files: `demo`, a local folder, or a hub id (fetched if need be).

    Raises `UsageError` if there is no such base or it has no safetensors weights.
    """
    if name == "demo":
        return DEMO
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetch(ALIASES.get(name, name), revision)
    if not list(folder.glob("*.safetensors")):
        raise UsageError(
            f"`{name}` has no safetensors weights",
            hint="convert it once: `AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER)`",
        )
    return folder


def load_base(
    name: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Base:
    """Load and freeze a base, to decode greedily unless told otherwise.

    `dtype` is `auto` (the checkpoint's own) or a key of `DTYPES`. `quantize` (`8bit` or `4bit`) is how its matrices are
    held; `device_map` is accelerate's, and counts if `device` is `auto`.

    Raises `UsageError` for a base that is missing, not whole, not a causal language model, or needs code of its own,
    and for a way of loading it that is not known or needs what is not installed.
    """
    where, folder = pick_device(device), folder_of(name, revision)
    check_files(name, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        spread = device_map if device == "auto" else None
        options = loading_options(folder, DTYPES.get(dtype), where, quantize, spread)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES.get(dtype, "auto"),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except UsageError:
        raise
    except Exception as error:  # a bad file can fail in any of four libraries
        if type(error).__name__ == "OutOfMemoryError":
            raise
        if needs_code(folder):
            raise UsageError(
                f"`{name}` cannot be loaded without code of its own, which scen never runs",
                hint="only bases that transformers itself has a class for can be edited",
            ) from error
        raise UsageError(f"`{name}` cannot be loaded: {_first_line(error)}") from error
    if lacking := sorted(loaded["missing_keys"]):  # transformers would fill them at random
        raise UsageError(f"`{name}` cannot be loaded: it lacks {len(lacking)} weights, `{lacking[0]}` among them")
    model.requires_grad_(False)
    own = model.generation_config  # sampling and penalties that the checkpoint ships are not the base's answers
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    return Base(model.eval() if options else model.eval().to(where), tokenizer, folder)


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU. Raises `UsageError` for one that is not here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, available in here.items() if available))
    kind, _, number = device.partition(":")
    if not here.get(kind, False) or (number and not number.isdigit()):
        available = [name for name, is_here in here.items() if is_here]
        raise UsageError(f"device `{device}` is not available", hint=f"here: {', '.join(available)}")
    return torch.device(device)


def commit_of(folder: Path) -> str | None:
    """The hub commit a fetched folder holds; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _fetch(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        wanted, unwanted = _WANTED_FILES, ["consolidated*", "original/*"]  # other copies of the same weights
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except HFValidationError as error:
        raise UsageError(
            f"`{repo}` is neither a folder that is there, nor an alias, nor a hub id",
            hint=f"a project's base that moved: `SCEN_BASE=FOLDER`; aliases: demo, {', '.join(ALIASES)}",
        ) from error
    except Exception as error:  # the hub client raises from many libraries: offline, gated, unknown
        raise ScenError(
            f"`{repo}` could not be fetched from the hub: {_first_line(error)}",
            hint="check the name and the connection, `hf auth login` for a gated base, or give a local folder",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def files_stamp(folder: Path) -> list[Any]:
    """Name, size and time of each weight file: while it stays the same, the digest need not be redone."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob("*.safetensors"))]
    return json.loads(json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]))


def check_unchanged(base: Base, settings: dict[str, Any]) -> None:
    """Raise `UsageError` if the base's weight files are not those the project was made with."""
    if files_stamp(base.folder) == settings["files_stamp"]:
        return
    if digest_of(base.folder) != settings["weights_digest"]:
        raise UsageError(
            f"the base's weights in `{base.folder}` have changed since this project was made: "
            "its keys and experts do not fit them",
            hint="restore the base, or make a new project and edit again",
        )
