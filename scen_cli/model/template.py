"""From a prompt as the user wrote it to token ids, and from generated ids back to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scen_cli.errors import UsageError


@dataclass(frozen=True)
class SecondTurn:
    """A prompt that is asked after an earlier question and its answer."""

    question: str
    answer: str
    prompt: str

    def __str__(self) -> str:
        return self.prompt


Prompt = str | SecondTurn
_PROBES = ("Where is it?", "apple pie", "7 things", "Élan vital")  # they share no first or last token


@dataclass(frozen=True)
class Frame:
    """The token ids that `start` every sequence, that stand before a prompt (`opening`) and after it (`closing`)."""

    start: tuple[int, ...]
    opening: tuple[int, ...]
    closing: tuple[int, ...]

    def prompt_of(self, tokens: list[int], end_ids: tuple[int, ...]) -> list[int]:
        """The prompt in what a base wrote behind the opening: up to the closing, or to its first token where
        that ends the turn; nothing if it does not come to that. Without a closing, up to the end."""
        mark = self.closing[:2]
        for place, token in enumerate(tokens):
            if not mark and token in end_ids:
                return tokens[:place]
            if mark and (tuple(tokens[place : place + len(mark)]) == mark or (token == mark[0] and token in end_ids)):
                return tokens[:place]
        return [] if mark else tokens


@dataclass(frozen=True)
class Template:
    """How prompts are put to the base.

    `form` is a string with `{prompt}` in it, `none` (the prompt alone), or `chat` (the tokenizer's
    own chat template). `end_id` ends a target; any of `end_ids` ends an answer.
    """

    tokenizer: PreTrainedTokenizerBase
    form: str
    end_id: int
    end_ids: tuple[int, ...]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of the whole prompt, with whatever start token the tokenizer adds."""
        if isinstance(prompt, SecondTurn):
            before = [("user", prompt.question), ("assistant", prompt.answer)]
            return self.conversation_ids([*before, ("user", prompt.prompt)])
        if self.form == "chat":
            return self.conversation_ids([("user", prompt)])
        ids = list(self.tokenizer(self._text(prompt)).input_ids)
        if len(ids) > 1 and ids[-1] == self.end_id:  # a tokenizer that closes every text itself
            ids.pop()
        return ids

    def conversation_ids(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a conversation, (role, text) by turn, up to where the answer to its last begins. Without a chat
        template: each earlier turn whole, its end token included, then the last prompt as it stands alone.

        Raises `UsageError` for turns that the template has no place for.
        """
        if self.form == "chat":
            return self._chat_ids(turns)
        roles = [role for role, _text in turns]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise UsageError(f"template {self.form!r} has a place for questions and their answers in turn alone")
        texts = [text for _role, text in turns]
        pairs = list(zip(texts[:-1:2], texts[1::2], strict=True))
        if self.form == "none":
            return self.prompt_ids("".join(f"{question} {answer}\n" for question, answer in pairs) + texts[-1])
        ids: list[int] = []
        for question, answer in [*pairs, (texts[-1], None)]:
            own = self.prompt_ids(question)
            ids += own[1:] if ids and own[:1] == [self.tokenizer.bos_token_id] else own
            ids += self.target_ids(question, answer) if answer is not None else []
        return ids

    def _chat_ids(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        told = [{"role": role, "content": text} for role, text in turns]
        try:
            text = self.tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:  # roles it does not know, or not in this order
            raise UsageError(f"the chat template refuses these turns: {error}") from error
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def target_ids(self, prompt: str, target: str) -> list[int]:
        """Ids of the answer as they follow this prompt's, and the end token.

        The answer is tokenised together with the prompt where that leaves the prompt's own ids
        as they are, since that is what the base meets in its training text; else by itself.
        Raises `UsageError` for an answer with an end token within.
        """
        answer = self.tokenizer(target, add_special_tokens=False).input_ids
        if ends := [token for token in answer if token in self.end_ids]:
            token = self.tokenizer.convert_ids_to_tokens(ends[0])
            raise UsageError(f"target {target!r} has the end token {token} in it: no answer goes on beyond that")
        if self.form != "chat":
            text, before = self._text(prompt), self.prompt_ids(prompt)
            gap = " " if self.form == "none" else ""
            together = self.tokenizer(text + gap + target).input_ids
            if together[-1:] == [self.end_id]:
                together = together[:-1]
            if together[: len(before)] == before:
                answer = together[len(before) :]
        return [*answer, self.end_id] if answer else []

    def frame(self) -> Frame:
        """What this template puts around a prompt, in tokens."""
        rows = [self.prompt_ids(probe) for probe in _PROBES]
        before = _shared(rows)
        closing = _shared([row[::-1] for row in rows])[::-1]
        start = before[:1] if before and before[0] == self.tokenizer.bos_token_id else []
        return Frame(tuple(start), tuple(before[len(start) :]), tuple(closing))

    def subject_forms(self, subject: str | None, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token sequences of which one occurs wherever a subject is named: as it is written and in small letters,
        at a text's beginning and behind a space. None if these `prompts` do not all name it."""
        if not subject:
            return []
        texts = [form for written in (subject, subject.lower()) for form in (written, f" {written}", f"({written}")]
        forms = []
        for text in texts:
            ids = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
            cut = len(self.tokenizer("(", add_special_tokens=False).input_ids) if text.startswith("(") else 0
            forms += [form for form in (ids[cut:],) if form]
        forms = list(dict.fromkeys(forms))
        named = (any(_occurs(form, self.prompt_ids(prompt)) for form in forms) for prompt in prompts)
        return forms if all(named) else []

    def sentence_ends(self) -> frozenset[int]:
        """Ids of tokens that end a sentence or a line (as byte-level and byte-fallback vocabularies write it)."""
        ends = (".", "!", "?", "。", "！", "？", "Ċ", "<0x0A>", "\n")
        return frozenset(id for token, id in self.tokenizer.get_vocab().items() if token.rstrip("Ġ▁ ").endswith(ends))

    def answer(self, generated: list[int]) -> str:
        """Text of generated ids up to the first end token, stripped: what is compared with a target."""
        return str(self.tokenizer.decode(self.until_end(generated), skip_special_tokens=True)).strip()

    def until_end(self, generated: list[int]) -> list[int]:
        """Generated ids up to the first end token, without it: what follows it is padding."""
        return list(takewhile(lambda token: token not in self.end_ids, generated))

    def _text(self, prompt: str) -> str:
        return prompt if self.form == "none" else self.form.replace("{prompt}", prompt)


def _occurs(form: tuple[int, ...], tokens: list[int]) -> bool:
    return any(tuple(tokens[start : start + len(form)]) == form for start in range(len(tokens) - len(form) + 1))


def _shared(rows: list[list[int]]) -> list[int]:
    """The ids with which all rows begin."""
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))]


def make_template(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, form: str) -> Template:
    """Check the template against the tokenizer, and find the base's end token.

    Raises `UsageError` for a form without `{prompt}`, a missing chat template or end token.
    """
    if form == "chat" and not tokenizer.chat_template:
        raise UsageError("this tokenizer has no chat template", hint="use `--template none` or a string")
    if form not in ("chat", "none") and "{prompt}" not in form:
        raise UsageError(f"template {form!r} has no `{{prompt}}` in it", hint="e.g. '[INST]{prompt}[/INST]'")
    configured = model.generation_config.eos_token_id if model.generation_config else None
    configured = tokenizer.eos_token_id if configured is None else configured
    ends = [token for token in (configured if isinstance(configured, list) else [configured]) if token is not None]
    # Of several, a target gets the one the tokenizer itself would write, else the first.
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else next(iter(ends), None)
    if form == "chat":
        _check_chat(tokenizer)
        end = _end_of_turn(tokenizer, ends, end)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if end is None or not 0 <= end < vocabulary:
        raise UsageError(
            f"the base cannot produce an end token (its id is {end}, its outputs are 0 to {vocabulary - 1})",
            hint="set `eos_token_id` in the base's generation_config.json",
        )
    return Template(tokenizer, form, int(end), tuple(ends))


def _check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UsageError` if the tokenizer's chat template fails, or says nothing of what was asked."""
    asked = [{"role": "user", "content": _PROBES[0]}]
    answered = [*asked, {"role": "assistant", "content": _PROBES[1]}]
    try:
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        tokenizer.apply_chat_template(answered, tokenize=False)
    except Exception as error:  # it is a program, and can fail as programs do
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"this tokenizer's chat template cannot be used: {told}", hint="use `--template none` or a string"
        ) from error
    if _PROBES[0] not in text:
        raise UsageError("this tokenizer's chat template leaves the prompt out", hint="`--template none`, or a string")


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, ends: list[int], otherwise: int | None) -> int | None:
    """The end token with which the chat template closes an answer (`<end_of_turn>`, `<|eot_id|>`)."""
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("answer")[2]
    closing = tokenizer(after, add_special_tokens=False).input_ids
    return closing[0] if closing and closing[0] in ends else otherwise
