"""Tiny random checkpoints of each architecture, saved to a folder with the demo's tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from scen_cli.model.known_bases import DEMO

SMALL = {
    "vocab_size": 800,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # large enough that keys of a random model differ
}
GPT2 = {
    "vocab_size": 800,
    "n_embd": 32,
    "n_inner": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
DENSE: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", SMALL),
    "mistral": ("MistralConfig", {**SMALL, "sliding_window": 64}),
    "qwen2": ("Qwen2Config", {key: value for key, value in SMALL.items() if key != "head_dim"}),
    "qwen3": ("Qwen3Config", SMALL),
    "gemma": ("GemmaConfig", SMALL),
    "gemma2": ("Gemma2Config", SMALL),
    "gemma3_text": ("Gemma3TextConfig", SMALL),
    "phi3": ("Phi3Config", SMALL),
    "gpt2": ("GPT2Config", GPT2),
}


def tiny_model(config_class: str, settings: dict, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model."""
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "post_feedforward_layernorm" in name:  # Gemma 2 and 3 scale the FFN down: make it matter
            parameter.data.fill_(4.0)
        if name.endswith("mlp.c_proj.bias"):  # GPT-2 initialises biases to zero: the tests would miss nothing
            parameter.data.normal_()
    return model.eval().requires_grad_(False)


def save_tiny(folder: Path, config_class: str, settings: dict, seed: int = 0) -> Path:
    """Save a random checkpoint; returns its folder."""
    tiny_model(config_class, settings, seed).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    return folder
