"""Bases in a GGUF file: dequantised once, and kept as a safetensors checkpoint in the cache.

The conversion is transformers' own (`gguf_file=`), with the `gguf` package. The cached folder is an ordinary base, so
that later loads are as fast as those of any local folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from scen_cli.data.user_cache import cache_folder
from scen_cli.errors import UsageError

SOURCE = "gguf-source.json"
# What transformers' conversion of the tokenizer leaves out, by the GGUF's name of it: `smollm` splits digits.
_PRE_TOKENIZERS = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
}
FLOAT32_BYTES = 12 << 30  # a larger base is stored in bfloat16


@dataclass(frozen=True)
class GgufSource:
    """The file that a cached base was converted from.

    Attributes:
        file: Its path.
        sha256: Hex digest of its content.
        size: Bytes.
        modified: Modification time, nanoseconds.
        quantization: How most of its weights are stored, such as `Q4_1`.
        dtype: The dtype of the converted weights.
    """

    file: str
    sha256: str
    size: int
    modified: int
    quantization: str
    dtype: str


def converted_folder(file: Path) -> Path:
    """The folder of a GGUF file's base, converted now if the cache does not have it.

    Raises:
        UsageError: The file is no GGUF, its architecture or a quantisation is not supported, or a package is missing.
    """
    file = file.expanduser().resolve()
    stat = file.stat()
    key = hashlib.sha256(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "gguf" / f"{file.stem}-{key}"
    if source_of(folder) is not None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if source_of(folder) is None:  # another process may have converted it meanwhile
            draft = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
            try:
                _convert(file, draft)
                shutil.rmtree(folder, ignore_errors=True)
                draft.replace(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder


def source_of(folder: Path) -> GgufSource | None:
    """What a cached base was converted from; None if the folder is no converted base."""
    with suppress(OSError, ValueError, TypeError):
        return GgufSource(**json.loads((folder / SOURCE).read_text(encoding="utf-8")))
    return None


def _convert(file: Path, folder: Path) -> None:
    """Write the safetensors checkpoint of a GGUF file; the source is written last."""
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"GGUF bases need the package `{package}`", hint="pip install 'scen-cli[gguf]'")
    quantization, parameters, fields = _inspect(file)
    dtype = torch.float32 if 4 * parameters <= FLOAT32_BYTES else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        _complete_tokenizer(tokenizer, fields)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
    except (ValueError, NotImplementedError, KeyError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"`{file.name}` cannot be converted: {reason}") from error
    config = AutoConfig.for_model(model.config.model_type, **_plain_config(model.config.to_dict()))
    # transformers refuses to save a model that it has dequantised: a plain one takes the weights over.
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while piece := content.read(1 << 22):
            digest.update(piece)
    stat = file.stat()
    source = GgufSource(
        str(file), digest.hexdigest(), stat.st_size, stat.st_mtime_ns, quantization, str(dtype).removeprefix("torch.")
    )
    (folder / SOURCE).write_text(json.dumps(asdict(source), indent=1), encoding="utf-8")


def _plain_config(config: dict[str, object]) -> dict[str, object]:
    """A config without what the conversion left in it."""
    left = ("quantization_config", "_name_or_path", "model_type", "transformers_version", "dtype")
    return {name: value for name, value in config.items() if name not in left}


def _complete_tokenizer(tokenizer: PreTrainedTokenizerBase, fields: dict[str, Any]) -> None:
    """Add what the GGUF says of its tokenizer and transformers' conversion leaves out."""
    backend = tokenizer.backend_tokenizer
    if (name := fields.get("tokenizer.ggml.pre")) in _PRE_TOKENIZERS:
        backend.pre_tokenizer = _PRE_TOKENIZERS[name]
    bos = tokenizer.bos_token_id
    if fields.get("tokenizer.ggml.add_bos_token") and bos is not None and tokenizer("a").input_ids[0] != bos:
        special = [(tokenizer.bos_token, bos)]
        backend.post_processor = processors.TemplateProcessing(f"{tokenizer.bos_token} $A", special_tokens=special)


def _inspect(file: Path) -> tuple[str, int, dict[str, Any]]:
    """The most frequent quantisation of a GGUF's weights, the number of parameters, and the tokenizer's plain fields.

    Raises:
        UsageError: The file is no GGUF, or transformers does not support its architecture.
    """
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise UsageError(f"`{file.name}` is no GGUF file, or is damaged: {error}") from error
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        known = ", ".join(sorted({*GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"}))
        raise UsageError(
            f"`{file.name}` has the architecture `{architecture}`, which transformers cannot read from a GGUF",
            hint=f"supported: {known}",
        )
    counts: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        counts[kind] = counts.get(kind, 0) + int(tensor.n_elements)
    names = ("tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token")
    fields = {name: reader.fields[name].contents() for name in names if name in reader.fields}
    return max(counts, key=lambda kind: counts[kind]), sum(counts.values()), fields
