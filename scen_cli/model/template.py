"""Templates: from a user's prompt to token ids, and from generated token ids back to an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scen_cli.data.words import stands_alone
from scen_cli.errors import UsageError
from scen_cli.model.chat_template import chat_template_of
from scen_cli.model.keys import Span, Turn
from scen_cli.model.subject_filter import SubjectFilter
from scen_cli.model.token_pieces import pieces_of


@dataclass(frozen=True)
class SecondTurn:
    """A prompt in the second turn of a conversation, after a question and its answer."""

    question: str
    answer: str
    prompt: str

    def __str__(self) -> str:
        return self.prompt


Prompt = str | SecondTurn
OPENING_MARKS = frozenset("([{“‘«‹„「『《〈（【¿¡/")
# What ends a prompt without a space behind it: `l'`, `dell'`, an opening `'`, and $ but not in `5 $`.
_JOINS = re.compile(r"(^|\s)(\w{0,2}|\w{1,2}ll)['’]$|(?<!\d)(?<!\d )[$£€¥₹₽₩]$")
_CLOSES = re.compile(r"[,.;:!?%…)\]}]+(\s|$)")  # .NET and !important are names
MASK = "it"  # stands in for a subject: "Where was it born?" (benchmarks/LOG.md)
_PROBES = ("Where is it?", "apple pie", "7 things", "Élan vital")  # no two have the same first or last token


@dataclass(frozen=True)
class Frame:
    """The tokens that a template puts around a prompt.

    Attributes:
        start: Token ids at the start of every sequence.
        opening: Token ids before a single prompt: a system prompt that the template writes by itself among them.
        turns: Token ids one of which stand before the last user's turn of every conversation, as `KeyConfig` has them.
        closing: Token ids after the prompt.
    """

    start: tuple[int, ...]
    opening: tuple[int, ...]
    turns: tuple[Turn, ...]
    closing: tuple[int, ...]

    def extract_prompt(self, tokens: list[int], end_ids: tuple[int, ...]) -> list[int]:
        """The prompt in what a base generated after the opening.

        Args:
            tokens: The generated ids.
            end_ids: The end tokens.

        Returns:
            The ids before the closing, or before its first token if that is an end token; none if the closing is
            missing. Without a closing: the ids before the first end token.
        """
        mark = self.closing[:2]
        for index, token in enumerate(tokens):
            if not mark and token in end_ids:
                return tokens[:index]
            if mark and (tuple(tokens[index : index + len(mark)]) == mark or (token == mark[0] and token in end_ids)):
                return tokens[:index]
        return [] if mark else tokens


@dataclass(frozen=True)
class Template:
    """How prompts become token ids. Make one with `make_template`.

    Attributes:
        tokenizer: The base's tokenizer.
        form: A string with `{prompt}` in it; `none`: the prompt alone; `chat`: the tokenizer's chat template.
        end_id: The token that ends a target.
        end_ids: The tokens that end an answer.
        day: The date that the chat template writes, in ISO form; None: it writes none, or today's.
    """

    tokenizer: PreTrainedTokenizerBase
    form: str
    end_id: int
    end_ids: tuple[int, ...]
    day: str | None = None

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt in the template, with the tokenizer's start token if it adds one."""
        if isinstance(prompt, SecondTurn):
            before = [("user", prompt.question), ("assistant", prompt.answer)]
            return self.conversation_ids([*before, ("user", prompt.prompt)])
        if self.form == "chat":
            return self.conversation_ids([("user", prompt)])
        ids = list(self.tokenizer(self._text(prompt)).input_ids)
        if len(ids) > 1 and ids[-1] == self.end_id:  # some tokenizers end every text
            ids.pop()
        return ids

    def conversation_ids(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the answer to its last turn begins.

        Without a chat template, earlier turns are written in full, end tokens included, and the last as a single
        prompt would be.

        Args:
            turns: (role, text) of each turn.

        Raises:
            UsageError: The template cannot express these roles.
        """
        if self.form == "chat":
            return self._chat_ids(turns)
        roles = [role for role, _text in turns]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise UsageError(f"template {self.form!r} supports only alternating turns of user and assistant")
        texts = [text for _role, text in turns]
        pairs = list(zip(texts[:-1:2], texts[1::2], strict=True))
        if self.form == "none":
            return self.prompt_ids("".join(f"{question} {answer}\n" for question, answer in pairs) + texts[-1])
        ids: list[int] = []
        for question, answer in [*pairs, (texts[-1], None)]:
            prompt = self.prompt_ids(question)
            ids += prompt[1:] if ids and prompt[:1] == [self.tokenizer.bos_token_id] else prompt
            ids += self.target_ids(question, answer) if answer is not None else []
        return ids

    @cached_property
    def _chat_source(self) -> str:
        return chat_template_of(self.tokenizer, self.day)

    def _chat_ids(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        messages = [{"role": role, "content": text.strip() if role == "user" else text} for role, text in turns]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self._chat_source, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:  # an unknown role, or a wrong order of roles
            raise UsageError(f"the chat template refuses these turns: {error}") from error
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def target_ids(self, prompt: str, target: str) -> list[int]:
        """Token ids of a target after this prompt, with the end token.

        Prompt and target are tokenised together, as in the base's training text, unless that changes the ids of the
        prompt; then the target is tokenised alone.

        Raises:
            UsageError: The target contains an end token.
        """
        answer = self.tokenizer(target, add_special_tokens=False).input_ids
        if ends := [token for token in answer if token in self.end_ids]:
            token = self.tokenizer.convert_ids_to_tokens(ends[0])
            raise UsageError(f"target {target!r} has the end token {token} in it: an answer ends there")
        if self.form != "chat":
            text, before = self._text(prompt), self.prompt_ids(prompt)
            gap = " " if self.form == "none" and _spaced(prompt, target) else ""
            together = self.tokenizer(text + gap + target).input_ids
            if together[-1:] == [self.end_id]:
                together = together[:-1]
            if together[: len(before)] == before:
                answer = together[len(before) :]
        return [*answer, self.end_id] if answer else []

    def frame(self) -> Frame:
        """Find the tokens that this template puts around a prompt: those that several prompts have in common."""
        rows = [self.prompt_ids(probe) for probe in _PROBES]
        before = _common_prefix(rows)
        closing = _common_prefix([row[::-1] for row in rows])[::-1]
        start = before[:1] if before and before[0] == self.tokenizer.bos_token_id else []
        opening = before[len(start) :]
        turns = dict.fromkeys(turn for turn in self._turns(opening) if turn[0])
        return Frame(tuple(start), tuple(opening), tuple(turns), tuple(closing))

    def _turns(self, opening: list[int]) -> Iterator[Turn]:
        """What stands before the last prompt of a conversation, whatever was said before it: alone, behind a client's
        own system prompt, behind earlier turns."""
        yield tuple(opening), ()
        alone = [self.prompt_ids(probe) for probe in _PROBES]
        for role in ("system", "assistant"):
            before = []
            for said in ("Be kind.", "7 of them"):  # only what does not depend on it is the template's
                earlier = [("system", said)] if role == "system" else [("user", "Who?"), ("assistant", said)]
                try:
                    rows = [self.conversation_ids([*earlier, ("user", probe)]) for probe in _PROBES]
                except UsageError:  # a template without system prompts
                    break
                before.append(_common_prefix(rows))
            else:
                turn = _common_prefix([tokens[::-1] for tokens in before])[::-1]
                yield tuple(turn), self._glue(alone[0], rows[0][len(before[-1]) :])

    def _glue(self, alone: list[int], behind: list[int]) -> tuple[int, ...]:
        """Tokens between the opening and a prompt's tokens as they are in a conversation: a space, if the opening ends
        with one and what stands before a later prompt does not."""
        places = [place for place in range(len(alone)) if alone[place : place + len(behind)] == behind]
        start = len(_common_prefix([self.prompt_ids(probe) for probe in _PROBES]))
        if places:
            return tuple(alone[start : places[-1]])
        vocabulary = self.tokenizer.get_vocab()
        return tuple(vocabulary[space] for space in ("Ġ", "▁") if space in vocabulary)

    @cached_property
    def pieces(self) -> list[bytes]:
        """The text of each token id, in UTF-8; a gap for special tokens. A piece may hold half a character."""
        return pieces_of(self.tokenizer)

    def visible(self, text: str) -> str:
        """A text without what is a special token in a prompt: names are searched in text alone."""
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, " ")
        return text.strip()

    def spans_of(self, names: Sequence[str], tokens: Sequence[int]) -> list[Span]:
        """The tokens of a prompt that name a subject; none if it is not named."""
        found = SubjectFilter([names], self.pieces).named(tokens) if names else []
        return found[0].spans if found else []

    def mask_ids(self) -> tuple[int, ...]:
        """Token ids of the word that masks a subject, as they stand behind another word."""
        alone, behind = (self.tokenizer(text, add_special_tokens=False).input_ids for text in ("so", f"so {MASK}"))
        return tuple(behind[len(_common_prefix([alone, behind])) :])

    def sentence_ends(self) -> frozenset[int]:
        """Ids of tokens that end a sentence or a line, in byte-level and byte-fallback vocabularies."""
        ends = (".", "!", "?", "。", "！", "？", "Ċ", "<0x0A>", "\n")
        return frozenset(id for token, id in self.tokenizer.get_vocab().items() if token.rstrip("Ġ▁ ").endswith(ends))

    def answer(self, generated: list[int]) -> str:
        """The text of generated ids up to the first end token, stripped. Evaluation compares it with the target."""
        return str(self.tokenizer.decode(self.until_end(generated), skip_special_tokens=True)).strip()

    def until_end(self, generated: list[int]) -> list[int]:
        """Generated ids before the first end token. What follows is padding."""
        return list(takewhile(lambda token: token not in self.end_ids, generated))

    def _text(self, prompt: str) -> str:
        return prompt if self.form == "none" else self.form.replace("{prompt}", prompt)


def _spaced(prompt: str, target: str) -> bool:
    """Whether people put a space between a prompt and what continues it: not in scripts without spaces, nor behind an
    opening quote or bracket, a currency sign or `l'`, nor before a comma or another closing mark."""
    last, first = prompt[-1:], target[:1]
    opens = last in OPENING_MARKS or (last == '"' and prompt.count(last) % 2 == 1)
    opens = bool(opens or _JOINS.search(prompt) or _CLOSES.match(target))
    return not (opens or last.isspace() or stands_alone(last) or stands_alone(first))


def _common_prefix(rows: list[list[int]]) -> list[int]:
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))]


def make_template(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, form: str, day: str | None = None
) -> Template:
    """Make a template: check its form against the tokenizer, and find the base's end token.

    Args:
        tokenizer: The base's tokenizer.
        model: The base; its generation config names the end tokens.
        form: As in `Template`.
        day: As in `Template`.

    Raises:
        UsageError: The form has no `{prompt}`, the chat template is missing or fails, or there is no end token.
    """
    if form == "chat" and not tokenizer.chat_template:
        raise UsageError("this tokenizer has no chat template", hint="use `--template none` or a string")
    if form not in ("chat", "none") and "{prompt}" not in form:
        raise UsageError(f"template {form!r} has no `{{prompt}}` in it", hint="e.g. '[INST]{prompt}[/INST]'")
    configured = model.generation_config.eos_token_id if model.generation_config else None
    configured = tokenizer.eos_token_id if configured is None else configured
    ends = [token for token in (configured if isinstance(configured, list) else [configured]) if token is not None]
    # If there are several, targets get the tokenizer's own end token, else the first.
    if wrong := [token for token in ends if type(token) is not int]:
        raise UsageError(
            f"the base's generation config names the end token {wrong[0]!r}, which is no token id",
            hint="set `eos_token_id` in its generation_config.json to a number, or a list of numbers",
        )
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else next(iter(ends), None)
    if form == "chat":
        # The end token that the chat template puts after an answer (`<end_of_turn>`, `<|eot_id|>`).
        closing = tokenizer(_text_after_answer(tokenizer), add_special_tokens=False).input_ids
        if closing and (closing[0] in ends or closing[0] in tokenizer.all_special_ids):
            end = closing[0]
            ends = [*ends, *({end} - set(ends))]  # a generation config may lack it: answers would run on
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if end is None or not 0 <= end < vocabulary:
        raise UsageError(
            f"the base cannot produce an end token (its id is {end}, its outputs are 0 to {vocabulary - 1})",
            hint="set `eos_token_id` in the base's generation_config.json",
        )
    return Template(tokenizer, form, int(end), tuple(ends), day)


def _text_after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer's chat template puts after an answer. Raises `UsageError` if it fails or omits the prompt."""
    question = [{"role": "user", "content": _PROBES[0]}]
    answered = [*question, {"role": "assistant", "content": _PROBES[1]}]
    try:
        text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        after: str = tokenizer.apply_chat_template(answered, tokenize=False).rpartition(_PROBES[1])[2]
    except Exception as error:  # a chat template is a program: it can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"this tokenizer's chat template cannot be used: {reason}", hint="use `--template none` or a string"
        ) from error
    if _PROBES[0] not in text:
        raise UsageError("this tokenizer's chat template omits the prompt", hint="use `--template none` or a string")
    return after
