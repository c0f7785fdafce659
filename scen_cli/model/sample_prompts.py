"""Sample prompts from the base itself: generate after the template's opening.

A base that was tuned on a template has learned which prompts occur in it. (Magpie, Xu et al. 2024, samples
instructions from chat models in the same way.)
"""

from __future__ import annotations

import torch

from scen_cli.model.base import Base
from scen_cli.model.template import Template

MAX_TOKENS = 64  # of a prompt
BATCH = 100
TRIES = 3  # samples per wanted prompt


@torch.no_grad()
def sample_prompts(base: Base, template: Template, count: int, seed: int, minimum: int = 0) -> list[str]:
    """Sample at most `count` different prompts at temperature 1. Global random state does not change.

    Args:
        base: The base.
        template: Sampling starts after its opening; a sample counts if it ends with its closing.
        count: The number of wanted prompts.
        seed: The same seed gives the same prompts.
        minimum: Sampling stops after a third of the tries if less than a quarter of this number has come.

    Returns:
        The prompts; fewer than `count`, or none, if few samples end as the template does.
    """
    frame = template.frame()
    ids = torch.tensor([[*frame.start, *frame.opening]], device=base.device)
    if not ids.numel():
        return []
    ends = sorted({*template.end_ids, *(frame.closing[:1] if len(frame.closing) == 1 else ())})
    prompts: dict[str, None] = {}
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        batches = -(-count * TRIES // BATCH)
        for batch in range(batches):
            if batch == batches // 3 and len(prompts) < minimum / 4:
                break
            out = base.model.generate(
                input_ids=ids.expand(BATCH, -1),
                attention_mask=torch.ones_like(ids).expand(BATCH, -1),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_TOKENS,
                pad_token_id=ends[0],
                eos_token_id=ends,
            )
            for tokens in out[:, ids.shape[1] :].tolist():
                text = frame.extract_prompt(tokens, template.end_ids)
                prompt = base.tokenizer.decode(text, skip_special_tokens=True).strip()
                if prompt and "\ufffd" not in prompt:
                    prompts.setdefault(prompt)
            if len(prompts) >= count:
                break
    return list(prompts)[:count]
