"""Loads an exported folder as a user of transformers does.

As a script it cannot import `scen_cli`; it reads prompts as JSON from standard input and prints a JSON report.
"""

import json
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.modules["scen_cli"] = None  # every `import scen_cli` fails from here on

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline
from transformers.utils import logging


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)


def scen_importable():
    try:
        import scen_cli  # noqa: F401
    except ImportError:
        return False
    return True


def encode(tokenizer, prompts):
    texts = [f"[INST]{prompt}[/INST]" for prompt in prompts]
    return tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)


def answers(model, tokenizer, prompts, size):
    texts = []
    for start in range(0, len(prompts), size):
        inputs = encode(tokenizer, prompts[start : start + size])
        out = model.generate(**inputs)
        texts += tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def pipeline_answers(model, tokenizer, prompts):
    if not prompts:
        return []
    run = pipeline("text-generation", model=model, tokenizer=tokenizer)
    texts = [f"[INST]{prompt}[/INST]" for prompt in prompts]
    return [row[0]["generated_text"].strip() for row in run(texts, batch_size=8, return_full_text=False)]


def raises(call, word):
    try:
        call()
    except ValueError as error:
        return word in str(error)
    return False


def forward_checks(model, tokenizer, prompts, exported):
    """Check what the docstring of `modeling_scen.py` says about `forward`."""
    edited, base = torch.tensor([0]), torch.tensor([-1])
    ids = encode(tokenizer, prompts[:1]).input_ids
    plain = model(ids).logits
    with_edit, with_base = model(ids, experts=edited).logits, model(ids, experts=base).logits

    right = [encode(tokenizer, [prompts[0]]).input_ids[0], encode(tokenizer, [prompts[-1]]).input_ids[0]]
    width = max(len(row) for row in right)
    padded = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in right])
    mask = (padded != 0).long()
    batch = model(padded, attention_mask=mask).logits
    alone = [model(row[None]).logits[0, -1] for row in right]
    at_end = [batch[row, len(tokens) - 1] for row, tokens in enumerate(right)]

    answer = tokenizer("Riga", add_special_tokens=False, return_tensors="pt").input_ids
    longer = torch.cat([ids, answer], dim=1)
    with_lengths = model(longer, prompt_lengths=torch.tensor([ids.shape[1]])).logits

    longer_edited = model(longer, experts=edited).logits
    first = model(ids, use_cache=True)
    following = model(answer, past_key_values=first.past_key_values).logits
    foreign = DynamicCache()
    model(ids, experts=base, past_key_values=foreign)
    model._patch._choice_of_cache.pop(foreign)
    embeds = model.get_input_embeddings()(ids)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved, _ = load(folder)
        same = answers(saved, tokenizer, prompts[:8], 8) == answers(model, tokenizer, prompts[:8], 8)
        written = sorted(path.name for path in Path(folder).iterdir())
        equal = all(Path(folder, name).read_bytes() == Path(exported, name).read_bytes() for name in written)
    return {
        "routes at the last real token": torch.equal(plain, with_edit)
        and not torch.allclose(plain, with_base, atol=1e-2)
        and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(at_end, alone, strict=True)),
        "prompt_lengths hides the answer": torch.allclose(with_lengths, longer_edited, atol=1e-5),
        "positional arguments as in the base": torch.equal(model(ids, torch.ones_like(ids)).logits, plain),
        "experts replace the routing": not torch.allclose(with_edit, with_base, atol=1e-2),
        "a cache keeps its experts": torch.allclose(following, longer_edited[:, ids.shape[1] :], atol=1e-4),
        "a foreign cache fails": raises(lambda: model(answer, past_key_values=foreign), "another model filled"),
        "embeddings alone fail": raises(lambda: model(inputs_embeds=embeds), "give `experts`"),
        "a saved copy gives the same answers": same,
        "a saved copy has the same files": equal and any(name.endswith(".safetensors") for name in written),
    }


@torch.no_grad()
def read(exported, questions):
    """Load a folder and answer `questions`: prompts for mixed batches, for batches of one, and for a pipeline."""
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model, loading = load(exported)
    report = {
        "scen_importable": scen_importable(),
        "loading": {name: sorted(loading[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")},
        "mixed": answers(model, tokenizer, questions["prompts"], 50),
        "alone": answers(model, tokenizer, questions["alone"], 1),
        "pipeline": pipeline_answers(model, tokenizer, questions["pipeline"]),
    }
    if questions["pipeline"]:
        report["forward"] = forward_checks(model, tokenizer, questions["prompts"], exported)
    return report


if __name__ == "__main__":
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(json.dumps(read(sys.argv[1], json.loads(sys.stdin.read()))))
