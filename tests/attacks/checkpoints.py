"""Attacks on the folder that `scen init --model FOLDER` takes for a base."""

from __future__ import annotations

import json
import pickle
import shutil
from typing import Any

from scen_cli.model.known_bases import DEMO
from tests.attacks.attack import Attack, Canary, Ground, header, replace_by, replace_by_fifo

INIT = "init --model {m} --layer 2 --recipe key --dir {o}"
CHAT = f"{INIT} --template chat"
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def base(*changes):
    """A copy of the demo base, doctored by each change in turn."""

    def prepare(ground: Ground) -> None:
        shutil.copytree(DEMO, ground.model)
        for change in changes:
            change(ground)

    return prepare


def file(name: str, content: str | bytes | None):
    raw = content.encode() if isinstance(content, str) else content
    return lambda ground: replace_by(ground.model / name, raw)


def fields(name: str, **changes: Any):
    """A JSON file of the base with some fields changed."""

    def change(ground: Ground) -> None:
        path = ground.model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def config(**changes: Any):
    return fields(CONFIG, **changes)


def code(name: str):
    """A module that writes the canary as soon as it is imported."""

    def change(ground: Ground) -> None:
        text = f"import pathlib\npathlib.Path({str(ground.canary)!r}).touch()\n"
        text += "from transformers import LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n"
        (ground.model / name).write_text(text)

    return change


def pickled(name: str):
    return lambda ground: (ground.model / name).write_bytes(pickle.dumps(Canary(ground.canary)))


def cut(ground: Ground) -> None:
    path = ground.model / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def index_to(name: str):
    """An index that sends every tensor to one file, which is there."""

    def change(ground: Ground) -> None:
        shutil.copy(DEMO / WEIGHTS, ground.folder / "x.safetensors")
        shutil.copy(DEMO / WEIGHTS, ground.model / "part.safetensors")
        (ground.model / WEIGHTS).unlink()
        from safetensors import safe_open

        with safe_open(DEMO / WEIGHTS, framework="np") as weights:
            places = dict.fromkeys(weights.keys(), name.format(folder=ground.folder))
        (ground.model / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return change


def without(prefix: str):
    """The weights, but for some tensors."""

    def change(ground: Ground) -> None:
        from safetensors.numpy import load_file, save_file

        there = load_file(ground.model / WEIGHTS)
        kept = {name: value for name, value in there.items() if not name.startswith(prefix)}
        save_file(kept, ground.model / WEIGHTS, metadata={"format": "pt"})

    return change


REMOTE = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
ESCAPING = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for m in messages %}{{ m['content'] }}{% endfor %}"

ATTACKS = [
    Attack(
        "base: code of its own",
        base(config(model_type="evil", auto_map=REMOTE, architectures=["M"]), code("evil.py")),
        INIT,
        2,
        "code of its own",
    ),
    Attack(
        "base: code beside a model that needs none",
        base(config(auto_map=REMOTE), code("evil.py")),
        INIT,
        0,
        "project created",
    ),
    Attack(
        "base: code of another repository",
        base(config(model_type="evil", auto_map={"AutoModelForCausalLM": "who/ever--evil.M"})),
        INIT,
        2,
        "code of its own",
    ),
    Attack(
        "base: a tokenizer of its own",
        base(
            fields(
                "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map={"AutoTokenizer": ["evil.T", None]}
            ),
            code("evil.py"),
        ),
        INIT,
        2,
        "code of its own",
    ),
    Attack(
        "base: a module named like transformers' own",
        base(code("modeling_llama.py"), code("torch.py")),
        INIT,
        0,
        "project created",
    ),
    Attack(
        "base: pickled weights alone",
        base(file(WEIGHTS, None), pickled("pytorch_model.bin")),
        INIT,
        2,
        "no safetensors",
    ),
    Attack("base: pickled weights beside others", base(pickled("pytorch_model.bin")), INIT, 0, "project created"),
    Attack("base: pickled weights renamed", base(pickled(WEIGHTS)), INIT, 2, "cannot be loaded"),
    Attack("base: no weights", base(file(WEIGHTS, None)), INIT, 2, "no safetensors"),
    Attack("base: weights cut off", base(cut), INIT, 2, "cannot be loaded"),
    Attack("base: weights of no length", base(file(WEIGHTS, b"")), INIT, 2, "cannot be loaded"),
    Attack("base: a header of 2^63-1 bytes", base(file(WEIGHTS, header({}, 2**63 - 1))), INIT, 2, "cannot be loaded"),
    Attack("base: weights without tensors", base(file(WEIGHTS, header({}))), INIT, 2, "cannot be loaded"),
    Attack("base: a layer's weights are lacking", base(without("model.layers.1.")), INIT, 2, "cannot be loaded"),
    Attack("base: its embeddings are lacking", base(without("model.embed")), INIT, 2, "cannot be loaded"),
    Attack(
        "base: a folder for weights",
        base(file(WEIGHTS, None), lambda g: (g.model / WEIGHTS).mkdir()),
        INIT,
        2,
        "cannot be loaded",
    ),
    Attack(
        "base: a pipe for weights",
        base(lambda g: replace_by_fifo(g.model / WEIGHTS)),
        INIT,
        2,
        "is not a file",
        seconds=5,
    ),
    Attack("base: an index out of the folder", base(index_to("../x.safetensors")), INIT, 2, "outside"),
    Attack("base: an index to an absolute path", base(index_to("{folder}/x.safetensors")), INIT, 2, "outside"),
    Attack("base: an index to no file", base(index_to("gone.safetensors")), INIT, 2, "cannot be loaded"),
    Attack("base: an index to a file", base(index_to("part.safetensors")), INIT, 0, "project created"),
    Attack("base: no config", base(file(CONFIG, None)), INIT, 2, "cannot be loaded"),
    Attack("base: a config that is no JSON", base(file(CONFIG, "{not json")), INIT, 2, "cannot be loaded"),
    Attack("base: a config that is a list", base(file(CONFIG, "[]")), INIT, 2, "cannot be loaded"),
    Attack("base: a config of bytes", base(file(CONFIG, b"\xff\xfe\0\1")), INIT, 2, "cannot be loaded"),
    Attack("base: a config of brackets", base(file(CONFIG, "[" * 100_000)), INIT, 2, "cannot be loaded"),
    Attack(
        "base: an unknown architecture",
        base(config(model_type="perceptron", architectures=["X"])),
        INIT,
        2,
        "perceptron",
    ),
    Attack("base: an architecture with escapes", base(config(model_type="a\x1b[2Jb")), INIT, 2, "cannot be loaded"),
    Attack(
        "base: no causal language model",
        base(config(model_type="vit", architectures=["ViTModel"])),
        INIT,
        2,
        "cannot be loaded",
    ),
    Attack("base: a mixture of experts", base(config(num_local_experts=8)), INIT, 2, "mixture of experts"),
    Attack("base: 10^9 wide", base(config(hidden_size=10**9)), INIT, 2, "cannot be loaded"),
    Attack("base: a vocabulary of 10^12", base(config(vocab_size=10**12)), INIT, 2, "cannot be loaded"),
    Attack("base: 10^9 wide between", base(config(intermediate_size=10**9)), INIT, 2, "cannot be loaded"),
    Attack("base: 10^9 layers", base(config(num_hidden_layers=10**9)), INIT, 2, "cannot be loaded"),
    Attack("base: a context of 10^12", base(config(max_position_embeddings=10**12)), INIT, 0, "project created"),
    Attack(
        "base: 10^9 wide, without weights",
        base(config(hidden_size=10**9), without("model.")),
        INIT,
        2,
        "cannot be loaded",
    ),
    Attack("base: of a negative width", base(config(hidden_size=-96)), INIT, 2, "cannot be loaded"),
    Attack("base: no heads", base(config(num_attention_heads=0)), INIT, 2, "cannot be loaded"),
    Attack("base: a width of words", base(config(hidden_size="wide")), INIT, 2, "cannot be loaded"),
    Attack(
        "base: an end token beyond the vocabulary",
        base(fields("generation_config.json", eos_token_id=10**9)),
        INIT,
        2,
        "end token",
    ),
    Attack("base: a tokenizer of garbage", base(file(TOKENIZER, "garbage")), INIT, 2, "cannot be loaded"),
    Attack("base: a tokenizer that is empty JSON", base(file(TOKENIZER, "{}")), INIT, 2, "cannot be loaded"),
    Attack("base: no tokenizer", base(file(TOKENIZER, None)), INIT, 2, "cannot be loaded"),
    Attack(
        "base: a tokenizer of an unknown class",
        base(fields("tokenizer_config.json", tokenizer_class="Nothing")),
        INIT,
        0,
        "project created",
    ),
    Attack(
        "base: a chat template that climbs out",
        base(fields("tokenizer_config.json", chat_template=ESCAPING)),
        CHAT,
        2,
        "chat template",
    ),
    Attack(
        "base: a chat template that is broken",
        base(fields("tokenizer_config.json", chat_template="{% for %}")),
        CHAT,
        2,
        "chat template",
    ),
    Attack(
        "base: a chat template without turns",
        base(fields("tokenizer_config.json", chat_template="hello")),
        CHAT,
        2,
        "chat template",
    ),
    Attack(
        "base: a chat template that raises",
        base(fields("tokenizer_config.json", chat_template="{{ raise_exception('\x1b[2J') }}")),
        CHAT,
        2,
        "chat template",
    ),
    Attack("base: a file for a folder", lambda g: g.model.write_text("x"), INIT, 2, "neither a folder"),
]
