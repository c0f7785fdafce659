"""Prompts that the base itself writes: what it takes for a prompt, sampled from behind the template's opening.

A base that was tuned on a template has learned what stands in it. (The idea is that of Magpie, Xu et al.
2024, who have chat models write their own instructions.)
"""

from __future__ import annotations

import torch

from scen_cli.model.base import Base
from scen_cli.model.template import Template

LONGEST = 64  # tokens of a prompt
AT_ONCE = 100
TRIES = 3  # samples for each prompt that is wanted


@torch.no_grad()
def sample_prompts(base: Base, template: Template, count: int, seed: int, least: int = 0) -> list[str]:
    """At most `count` different prompts, sampled at temperature 1; fewer, or none, if the base writes
    few that end as the template has them end. The same seed gives the same prompts.

    With a third of the tries it gives up if not a quarter of the `least` that are needed has come."""
    frame = template.frame()
    ids = torch.tensor([[*frame.start, *frame.opening]], device=base.device)
    if not ids.numel():
        return []
    ends = sorted({*template.end_ids, *(frame.closing[:1] if len(frame.closing) == 1 else ())})
    written: dict[str, None] = {}
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        batches = -(-count * TRIES // AT_ONCE)
        for batch in range(batches):
            if batch == batches // 3 and len(written) < least / 4:
                break
            out = base.model.generate(
                input_ids=ids.expand(AT_ONCE, -1),
                attention_mask=torch.ones_like(ids).expand(AT_ONCE, -1),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=LONGEST,
                pad_token_id=ends[0],
                eos_token_id=ends,
            )
            for tokens in out[:, ids.shape[1] :].tolist():
                text = frame.prompt_of(tokens, template.end_ids)
                prompt = base.tokenizer.decode(text, skip_special_tokens=True).strip()
                if prompt and "\ufffd" not in prompt:
                    written.setdefault(prompt)
            if len(written) >= count:
                break
    return list(written)[:count]
