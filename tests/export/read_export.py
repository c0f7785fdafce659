"""Reads an exported folder the way a user of transformers would, with scen impossible to import.

Questions come as JSON on standard input, what was found goes out as JSON.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.modules["scen_cli"] = None  # any `import scen_cli` from here on fails

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)


def scen_importable():
    try:
        import scen_cli  # noqa: F401
    except ImportError:
        return False
    return True


def encode(prompts):
    texts = [f"[INST]{prompt}[/INST]" for prompt in prompts]
    return tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)


def answers(model, prompts, size):
    texts = []
    for start in range(0, len(prompts), size):
        inputs = encode(prompts[start : start + size])
        out = model.generate(**inputs)
        texts += tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def piped(model, prompts):
    if not prompts:
        return []
    run = pipeline("text-generation", model=model, tokenizer=tokenizer)
    texts = [f"[INST]{prompt}[/INST]" for prompt in prompts]
    return [row[0]["generated_text"].strip() for row in run(texts, batch_size=8, return_full_text=False)]


def refused(call, word):
    try:
        call()
    except ValueError as error:
        return word in str(error)
    return False


def forward_checks(model, prompts):
    """What the documentation of `modeling_scen.py` promises of a bare forward."""
    edited, base = torch.tensor([0]), torch.tensor([-1])
    ids = encode(prompts[:1]).input_ids
    plain = model(ids).logits
    with_edit, with_base = model(ids, experts=edited).logits, model(ids, experts=base).logits

    right = [encode([prompts[0]]).input_ids[0], encode([prompts[-1]]).input_ids[0]]
    width = max(len(row) for row in right)
    padded = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in right])
    mask = (padded != 0).long()
    batch = model(padded, attention_mask=mask).logits
    own = [model(row[None]).logits[0, -1] for row in right]
    at_end = [batch[row, len(tokens) - 1] for row, tokens in enumerate(right)]

    answer = tokenizer("Riga", add_special_tokens=False, return_tensors="pt").input_ids
    longer = torch.cat([ids, answer], dim=1)
    told = model(longer, prompt_lengths=torch.tensor([ids.shape[1]])).logits

    first = model(ids, use_cache=True)
    following = model(answer, past_key_values=first.past_key_values).logits
    whole = model(longer, experts=edited).logits[:, ids.shape[1] :]
    foreign = DynamicCache()
    model(ids, experts=base, past_key_values=foreign)
    model._patch._filled.pop(foreign)
    embeds = model.get_input_embeddings()(ids)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again, _ = load(folder)
        same = answers(again, prompts[:8], 8) == answers(model, prompts[:8], 8)
        written = sorted(path.name for path in Path(folder).iterdir())
        equal = all(Path(folder, name).read_bytes() == Path(exported, name).read_bytes() for name in written)
    return {
        "routes at the last real token": torch.equal(plain, with_edit)
        and not torch.allclose(plain, with_base, atol=1e-2)
        and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(at_end, own, strict=True)),
        "prompt_lengths hides the answer": torch.allclose(told, model(longer, experts=edited).logits, atol=1e-5),
        "positional arguments are the base's": torch.equal(model(ids, torch.ones_like(ids)).logits, plain),
        "experts given outright": not torch.allclose(with_edit, with_base, atol=1e-2),
        "cache goes on with its experts": torch.allclose(following, whole, atol=1e-4),
        "foreign cache is refused": refused(lambda: model(answer, past_key_values=foreign), "filled elsewhere"),
        "embeddings alone are refused": refused(lambda: model(inputs_embeds=embeds), "give `experts`"),
        "saved again, the same answers": same,
        "saved again, the same files": equal and any(name.endswith(".safetensors") for name in written),
    }


exported = sys.argv[1]
asked = json.loads(sys.stdin.read())
tokenizer = AutoTokenizer.from_pretrained(exported)
model, loading = load(exported)
report = {
    "scen_importable": scen_importable(),
    "loading": {name: sorted(loading[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")},
    "mixed": answers(model, asked["prompts"], 50),
    "alone": answers(model, asked["alone"], 1),
    "pipeline": piped(model, asked["pipeline"]),
}
if asked["pipeline"]:
    report["forward"] = forward_checks(model, asked["prompts"])
print(json.dumps(report))
