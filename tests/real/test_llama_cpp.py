"""scen reads a GGUF as llama.cpp does: the same token ids, and the same greedy answers."""

from __future__ import annotations

import importlib.util

import pytest

from scen_cli.data.question_bank import bank_questions
from scen_cli.data.suites import real_facts
from tests.real.test_smollm2 import needs_smollm2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    needs_smollm2,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None,
        reason="no llama.cpp here: `pip install llama-cpp-python` builds it, in some ten minutes",
    ),
]
ANSWER_TOKENS = 12
ODD = [
    *(
        "3.14159 and 007 and 1,000,000",
        "a  b   c",
        "\ttab\nnew line\r\n",
        " leading and trailing ",
        "",
        "🙂👩‍👩‍👧 emoji",
    ),
    *("مرحبا بالعالم", "你好,世界。", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Ünïcödé é e\u0301", "C++ vs. C#", "∂x/∂y ∫ f dx"),
    *("<|im_start|>user\nhi<|im_end|>", "<|endoftext|>", "I'll we're she'd it's", "snake_case camelCase", "x" * 300),
    *("https://example.org/a?b=c&d=1#e", "\u200bzero\u00a0width", "«quotes» “and” ‘others’", "e.g. i.e. Dr. Who?"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The base in scen, float32, and in llama.cpp with the same weights."""
    from llama_cpp import Llama

    from scen_cli.model.base import load_base
    from scen_cli.model.known_bases import KNOWN
    from tests.real.llama_cpp import write_float32

    file = tmp_path_factory.mktemp("llama") / "float32.gguf"
    write_float32(KNOWN["smollm2"].gguf_file(), file)
    return load_base("smollm2", dtype="float32"), Llama(str(file), n_ctx=512, n_threads=1, verbose=False)


def test_the_token_ids_are_those_of_llama_cpp(pair):
    base, llama = pair
    facts = [text for fact in real_facts() for text in (fact.prompt, fact.target, *fact.rephrases)]
    texts = list(dict.fromkeys([*ODD, *facts, *bank_questions(200, seed=7)]))[:200]
    assert len(texts) == 200
    differing = [
        text
        for text in texts
        if base.tokenizer(text).input_ids != llama.tokenize(text.encode(), add_bos=False, special=True)
    ]
    assert differing == []


def test_greedy_answers_are_those_of_llama_cpp(pair):
    import torch

    from scen_cli.model.template import make_template

    base, llama = pair
    template = make_template(base.tokenizer, base.model, "chat")
    questions = bank_questions(100, seed=11)
    same = 0
    for question in questions:
        ids = template.prompt_ids(question)
        out = base.model.generate(
            torch.tensor([ids]), max_new_tokens=ANSWER_TOKENS, eos_token_id=list(template.end_ids)
        )
        ours = template.until_end(out[0, len(ids) :].tolist())
        llama.reset()
        theirs = []
        for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            if len(theirs) == ANSWER_TOKENS or token in template.end_ids:
                break
            theirs.append(token)
        same += ours == theirs
    assert same >= 95, f"{same} of {len(questions)} answers are the same"
    print(f"{same} of {len(questions)} greedy answers are the same")
