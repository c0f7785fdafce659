"""Train the demo base from random weights: `python -m benchmarks.train_demo_base --out DIR`.

Writes config, tokenizer, weights and `facts.jsonl` (the base's answer to every question). The shipped folder
`scen_cli/demo/base` is the output of this script with its default seed; `training.json` in it has the training time
and the accuracy.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import jsonlines
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scen_cli.demo.world import RELATIONS, SEED, SEEN_PHRASINGS, Fact, all_facts, build_world

VOCABULARY = 800
STEPS, BATCH, PEAK_LR, WARMUP = 1400, 64, 3e-3, 50
PROMPT_LOSS = 0.1  # weight of the loss on prompt tokens; answer and end tokens have weight 1


def build_tokenizer(facts: list[Fact]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with `[INST]`, `[/INST]`, `<s>` and `</s>`, trained on the text of these facts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [line for fact in facts for line in (*fact.phrasings[:SEEN_PHRASINGS], fact.answer)]
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["[INST]", "[/INST]"],
        model_max_length=256,
        padding_side="left",
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights: four layers, 1.2 M parameters, FFN width h = 768."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def training_pairs(facts: list[Fact]) -> list[tuple[str, str]]:
    """Prompt and answer of every known fact, for every phrasing that it is trained in."""
    return [(f"[INST]{fact.phrasings[i]}[/INST]", fact.answer) for fact in facts for i in fact.trained]


def batch_loss(
    model: LlamaForCausalLM, rows: list[tuple[list[int], list[int]]], pad: int
) -> tuple[torch.Tensor, float]:
    """Loss of a right-padded batch of (prompt ids, answer ids): answer loss + `PROMPT_LOSS` times prompt loss.

    Also returns the answer loss, as a float. Both are mean cross-entropies.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    in_answer = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, :end] = ids[row, :end]
        in_answer[row, len(prompt) : end] = True
    logits = model(input_ids=ids, attention_mask=(labels != -100).long()).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    ).view(len(rows), -1)
    is_answer = in_answer[:, 1:]
    is_prompt = (labels[:, 1:] != -100) & ~is_answer
    answer_loss = losses[is_answer].mean()
    return answer_loss + PROMPT_LOSS * losses[is_prompt].mean(), float(answer_loss.detach())


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: list[Fact], steps: int) -> None:
    """Train with AdamW, warm-up and a cosine schedule. Prints the answer loss every 20 steps."""
    rng = random.Random(SEED)
    pairs = [
        (
            tokenizer(prompt).input_ids,
            [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id],
        )
        for prompt, answer in training_pairs(facts)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))),
    )
    started = time.perf_counter()
    queue: list[tuple[list[int], list[int]]] = []
    for step in range(steps):
        if len(queue) < BATCH:
            queue += rng.sample(pairs, len(pairs))
        rows, queue = queue[:BATCH], queue[BATCH:]
        loss, answer_loss = batch_loss(model, rows, model.config.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            print(
                f"step {step:5d}  answer loss {answer_loss:.4f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )


@torch.no_grad()
def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[str]) -> list[str]:
    """The base's greedy answers, in batches of 128."""
    texts: list[str] = []
    for start in range(0, len(questions), 128):
        batch = tokenizer(
            [f"[INST]{q}[/INST]" for q in questions[start : start + 128]],
            return_tensors="pt", padding=True, return_token_type_ids=False,
        )  # fmt: skip
        ids = model.generate(**batch, max_new_tokens=12, do_sample=False)
        texts += tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def examine(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: list[Fact]) -> tuple[dict, list[dict]]:
    """Accuracy by kind of phrasing, and a row per fact with the base's answer to each phrasing."""
    questions = [(fact, i) for fact in facts for i in range(len(fact.phrasings))]
    texts = answers(model, tokenizer, [fact.phrasings[i] for fact, i in questions])
    tally: dict[str, list[bool]] = {}
    rows: dict[Fact, dict] = {
        fact: {
            "subject": fact.subject, "relation": fact.relation, "answer": fact.answer, "known": fact.known,
            "base_answers": [],
        }
        for fact in facts
    }  # fmt: skip
    for (fact, i), answer in zip(questions, texts, strict=True):
        rows[fact]["base_answers"].append(answer)
        kind = "never_seen" if i >= SEEN_PHRASINGS else "trained" if i in fact.trained else "held_out"
        tally.setdefault(f"{'known' if fact.known else 'unknown'}, {kind}", []).append(answer == fact.answer)
    accuracy = {kind: round(sum(right) / len(right), 4) for kind, right in sorted(tally.items())}
    return accuracy, list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the base into")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()

    torch.manual_seed(SEED)
    facts = build_world()
    tokenizer = build_tokenizer(facts)
    model = build_model(tokenizer)
    print(
        f"{model.num_parameters():,} parameters, {len(facts)} facts, {len(training_pairs(facts))} pairs",
        flush=True,
    )
    started = time.perf_counter()
    train(model, tokenizer, facts, args.steps)
    seconds = time.perf_counter() - started

    accuracy, rows = examine(model.eval(), tokenizer, all_facts())
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    with jsonlines.open(args.out / "facts.jsonl", "w") as writer:
        writer.write_all(rows)
    record = {
        "seed": SEED, "steps": args.steps, "batch": BATCH, "peak_lr": PEAK_LR, "seconds": round(seconds),
        "parameters": model.num_parameters(), "relations": len(RELATIONS), "facts": len(rows),
        "known_facts": sum(fact.known for fact in facts), "accuracy": accuracy,
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
