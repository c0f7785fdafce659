"""A stub of a vLLM server with `--enable-lora` and the filesystem resolver. It checks each field and file that vLLM
checks, and answers with the base and the requested LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from scen_cli.model.base import load_base

# Fields of a completion request in vLLM 0.11.
FIELDS = {
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stop_token_ids",
    "repetition_penalty",
    "top_k",
    "min_p",
    "stream",
    "stream_options",
}
# Fields of an adapter's config that vLLM's PEFTHelper reads.
PEFT_FIELDS = {"r", "lora_alpha", "target_modules", "bias", "modules_to_save", "use_rslora", "use_dora"}
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank


class StubVllm:
    """Serves the demo base as `demo`, and LoRAs of `module` from the subfolders of `folder`."""

    def __init__(self, folder: Path, module: str, max_lora_rank: int = 16) -> None:
        assert max_lora_rank in MAX_LORA_RANKS
        self.folder, self.module, self.max_rank = folder, module, max_lora_rank
        self.base = load_base("demo", device="cpu")
        self.bodies: list[dict] = []  # of all requests
        self.fail_with: int | None = None
        self.reply: str | None = None  # sent in place of an answer
        routes = [
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/health", lambda _request: PlainTextResponse("")),
        ]
        self.app = Starlette(routes=routes)

    def lora(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Load a LoRA with the checks of vLLM's resolver and loader."""
        config = json.loads((self.folder / name / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA"
        assert config["base_model_name_or_path"] == "demo"
        assert set(config) >= PEFT_FIELDS
        assert config["r"] <= self.max_rank
        assert config["bias"] == "none"
        assert not config["use_dora"]
        assert config["modules_to_save"] is None
        assert [name.rpartition(".")[2] for name in config["target_modules"]] == [self.module.rpartition(".")[2]]
        tensors = load_file(self.folder / name / "adapter_model.safetensors")
        a, b = (f"base_model.model.{self.module}.lora_{letter}.weight" for letter in "AB")
        assert set(tensors) == {a, b}
        d, h = self.base.model.get_submodule(self.module).weight.shape
        assert tensors[a].shape == (config["r"], h)
        assert tensors[b].shape == (d, config["r"])
        return tensors[a], tensors[b] * (config["lora_alpha"] / config["r"])

    async def complete(self, request):
        body = json.loads(await request.body())
        self.bodies.append(body)
        if self.fail_with:
            return JSONResponse({"error": {"message": "no"}}, self.fail_with)
        if self.reply is not None:
            return PlainTextResponse(self.reply)
        assert set(body) <= FIELDS
        # Not the defaults of the base's generation config.
        assert (body["repetition_penalty"], body["top_k"], body["min_p"]) == (1, -1, 0)
        assert request.headers["authorization"] == "Bearer for-vllm"
        assert all(isinstance(token, int) for token in body["prompt"])
        if body["model"] != "demo" and not (self.folder / body["model"]).is_dir():
            return JSONResponse({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        tokens = self.generate(body)
        text = self.base.tokenizer.decode(tokens, skip_special_tokens=True)
        usage = {"completion_tokens": len(tokens)}
        if not body.get("stream"):
            choice = {"index": 0, "text": text, "finish_reason": "stop"}
            return JSONResponse({"object": "text_completion", "choices": [choice], "usage": usage})

        def events():
            for index, letter in enumerate(text):
                last = index == len(text) - 1
                choice = {"index": 0, "text": letter, "finish_reason": "stop" if last else None}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @torch.no_grad()
    def generate(self, body: dict) -> list[int]:
        module = self.base.model.get_submodule(self.module)
        handle = None
        if body["model"] != "demo":
            a, b = self.lora(body["model"])
            handle = module.register_forward_hook(lambda _module, args, output: output + args[0] @ a.T @ b.T)
        ids = torch.tensor([body["prompt"]])
        out = self.base.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=body["max_tokens"],
            eos_token_id=body["stop_token_ids"],
            pad_token_id=0,
        )
        if handle:
            handle.remove()
        tokens = out[0, ids.shape[1] :].tolist()
        return tokens[:-1] if tokens[-1] in body["stop_token_ids"] else tokens
