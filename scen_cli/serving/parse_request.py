"""From an HTTP request to a `GenerationRequest`: size limit, validation, token ids."""

from __future__ import annotations

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import UsageError
from scen_cli.serving.protocol import ChatBody, RequestBody
from scen_cli.serving.request_queue import GenerationRequest

MAX_BODY = 1 << 20  # bytes


async def read_body(http_request: Request, body_type: type[RequestBody]) -> RequestBody:
    """Read and validate a request body. Raises `HTTPException` 400 or 413."""
    content = bytearray()
    try:
        async for chunk in http_request.stream():
            content += chunk
            if len(content) > MAX_BODY:
                raise HTTPException(413, f"a request has at most {MAX_BODY} bytes")
    except ClientDisconnect as error:
        raise HTTPException(400, "the client disconnected") from error
    try:
        return body_type.model_validate_json(bytes(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HTTPException(400, f"{field}: {first['msg']}" if field else first["msg"]) from error


def generation_request(patched: PatchedModel, body: RequestBody) -> GenerationRequest:
    """Tokenise the prompt and compute how many tokens can follow it. Raises `HTTPException` 400."""
    max_tokens = body.max_tokens
    try:
        if isinstance(body, ChatBody):
            max_tokens = body.max_completion_tokens or max_tokens
            ids = _conversation_ids(patched, [(turn.role, turn.text) for turn in body.messages])
        else:
            ids = _completion_ids(patched, body.prompt)
        patched.check_fits("the prompt", len(ids), 1)
    except UsageError as error:
        raise HTTPException(400, str(error)) from error
    context_left = (patched.context or 10**9) - len(ids)
    sampling = body.sampling
    max_tokens = min(max_tokens, context_left) if max_tokens else None
    # A seed sets the state of the random generator for the whole batch.
    return GenerationRequest(ids, max_tokens, context_left, sampling, run_alone=sampling.seed is not None)


def _conversation_ids(patched: PatchedModel, turns: list[tuple[str, str]]) -> list[int]:
    """Token ids of a conversation. Raises `UsageError` if a text has a marker of the template: it forges a turn."""
    template, tokenizer = patched.template, patched.base.tokenizer
    markers = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if "{prompt}" in template.form:
        markers += [part.strip() for part in template.form.split("{prompt}")]
    for _role, text in turns:
        if found := [marker for marker in markers if marker and marker in text]:
            raise UsageError(f"a message contains {found[0]!r}, which only the template may write")
    return template.conversation_ids(turns)


def _completion_ids(patched: PatchedModel, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return list(patched.base.tokenizer(prompt).input_ids)
    vocabulary = patched.model.get_input_embeddings().weight.shape[0]
    if any(not 0 <= token < vocabulary for token in prompt):
        raise UsageError(f"token ids go from 0 to {vocabulary - 1}")
    return prompt
