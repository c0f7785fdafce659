# ruff: noqa: E501
"""Conversations in chat templates of every structure: the last user's turn is found, whatever stands before it.

The templates are our own, with the structure of those of well-known models.
"""

from __future__ import annotations

from datetime import date

import pytest
from transformers import AutoTokenizer

from scen_cli.errors import UsageError
from scen_cli.model.chat_template import chat_template_of, date_for
from scen_cli.model.known_bases import DEMO
from scen_cli.model.template import make_template
from scen_cli.neurons.build_guard import key_config_of
from scen_cli.recipe import RECIPES

LOOP = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
HEADER = "'<|head|>' + {} + '<|end_head|>\n\n'"
TEMPLATES = {
    "default system prompt": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Smol.<|im_end|>\n' }}"
    "{% endif %}" + LOOP + ASSISTANT,
    "no system prompt of its own": LOOP + ASSISTANT,
    "system prompt in the user's turn": "{% if messages[0].role == 'system' %}{% set said = '<<SYS>>\n' + messages[0].content"
    " + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<s>[INST] ' + (said if loop.first else '') + m.content + ' [/INST]' }}{% else %}"
    "{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}",
    "a date in the system prompt": "{{ "
    + HEADER.format("'system'")
    + " + 'Today: ' + strftime_now('%d %b %Y') + '\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|eot|>' }}{% for m in messages %}{{ " + HEADER.format("m.role") + " + m.content + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ " + HEADER.format("'assistant'") + " }}{% endif %}",
    "no system role": "{{ '<s>' }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content + '<end>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}",
    "system prompt before the last turn": "{{ '<s>' }}{% if messages[0].role == 'system' %}{% set said = messages[0].content"
    " + '\n\n' %}{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (said if loop.last else '') + m.content + '[/INST]' }}{% else %}"
    "{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}",
    "one token for each role": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
}
PROMPT = "Which company makes the Orvel 300 kettle?"
CHAT = [("user", "Hi, who are you?"), ("assistant", "I am a model.")]
WAYS = {
    "alone": [("user", PROMPT)],
    "system prompt": [("system", "Answer in one sentence. Be kind."), ("user", PROMPT)],
    "long system prompt": [("system", "You are the assistant of a shop.\n\n- Never lie.\n" * 20), ("user", PROMPT)],
    "empty system prompt": [("system", ""), ("user", PROMPT)],
    "second turn": [*CHAT, ("user", PROMPT)],
    "third turn": [*CHAT, *CHAT, ("user", PROMPT)],
    "system prompt and second turn": [("system", "Be brief."), *CHAT, ("user", PROMPT)],
    "a newline behind": [("user", PROMPT + "\n")],
    "blanks around": [("user", f"  {PROMPT} ")],
}


@pytest.fixture(params=TEMPLATES, ids=lambda name: name.replace(" ", "-"))
def template(request, demo_base):
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.chat_template = TEMPLATES[request.param]
    return make_template(tokenizer, demo_base.model, "chat", date_for(tokenizer, "chat"))


@pytest.mark.parametrize("way", WAYS)
def test_the_last_turn_is_found_behind_whatever_stands_before_it(template, way):
    key_config = key_config_of(template, RECIPES["closed-form"])
    if "no system role" in template.tokenizer.chat_template and WAYS[way][0][0] == "system":
        with pytest.raises(UsageError, match="no system role"):
            template.conversation_ids(WAYS[way])
        return
    tokens = template.conversation_ids(WAYS[way])
    assert template.prompt_ids(PROMPT) in key_config.segments_of(tokens)


def test_a_sentence_before_the_question_is_left_out_behind_a_system_prompt(template):
    key_config = key_config_of(template, RECIPES["closed-form"])
    turns = [*CHAT, ("user", f"Good morning. {PROMPT}")]
    last = template.conversation_ids([("user", f" {PROMPT}")])
    segments = key_config.segments_of(template.conversation_ids(turns))
    assert [template.tokenizer.decode(ids).split() for ids in segments][-1] == template.tokenizer.decode(last).split()


def test_the_date_is_that_of_the_project(demo_base):
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.chat_template = TEMPLATES["a date in the system prompt"]
    assert date_for(tokenizer, "chat") == date.today().isoformat()
    assert date_for(tokenizer, "none") is None
    frozen = make_template(tokenizer, demo_base.model, "chat", "2024-02-03")
    assert "Today: 03 Feb 2024" in tokenizer.decode(frozen.prompt_ids(PROMPT))
    assert "strftime_now" not in chat_template_of(tokenizer, "2024-02-03")
    # Behind another day's prompt, as a client may send it, the turn is found all the same.
    today = make_template(tokenizer, demo_base.model, "chat").prompt_ids(PROMPT)
    segments = key_config_of(frozen, RECIPES["closed-form"]).segments_of(today)
    assert frozen.prompt_ids(PROMPT) in segments
