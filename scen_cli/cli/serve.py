"""`scen serve`: the patched model behind OpenAI's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scen_cli.cli.loaders import HERE, Device, Dir, open_editor
from scen_cli.cli.output import Json, Output, Quiet
from scen_cli.errors import UsageError


def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="SCEN_API_KEY", help="What clients must show. Other users see it in `ps`.", show_default="none"
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file that holds the API key.", show_default="none")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name of this server that `Host` may have.", show_default="local names and --host"),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="A web site whose pages may ask, e.g. http://localhost:3000.", show_default="none"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model.", show_default="as its base")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts answered together, at most.")] = 32,
    max_queue: Annotated[int, typer.Option(min=1, help="The most prompts in the queue; more get status 429.")] = 256,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one answer; later it is refused with 504.")] = 60,
    vllm: Annotated[
        str | None, typer.Option(help="A vLLM server that is to answer, e.g. http://localhost:8001.")
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="With --vllm: the folder that it reads LoRAs from; edits are put there.")
    ] = None,
    vllm_key: Annotated[
        str | None, typer.Option(envvar="SCEN_VLLM_KEY", help="With --vllm: the key it asks for.", show_default="none")
    ] = None,
    vllm_model: Annotated[
        str | None, typer.Option(help="With --vllm: what it calls the base.", show_default="its hub id, or its folder")
    ] = None,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer OpenAI's completions and chat completions: each prompt by its edit, or by the base.

    Edits made or reverted meanwhile count from the next prompt on. `pip install 'scen-cli[serve]'` brings what this
    needs.

    Example: scen serve --port 8000

    Example: scen serve --vllm http://localhost:8001 --adapters loras
    """
    out = Output(as_json, quiet)
    if (vllm is None) != (adapters is None) or (vllm_model and vllm is None):
        raise UsageError("`--vllm` and `--adapters` go together", hint="docs/how-to/serving.md has the commands")
    api_key = _checked_key(api_key, api_key_file)
    for name_of_key, instead in (("api_key", "SCEN_API_KEY or `--api-key-file`"), ("vllm_key", "SCEN_VLLM_KEY")):
        source = context.get_parameter_source(name_of_key)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name_of_key.replace("_", "-")
            out.warn(f"other users of this machine see the key of `{option}` in `ps`: {instead} hides it")
    try:
        import httpx  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"`scen serve` needs `{error.name}`", hint="pip install 'scen-cli[serve]' brings it"
        ) from error
    editor = open_editor(dir, device, out)
    from scen_cli.serving.app import ServerOptions
    from scen_cli.serving.origin_guard import hosts_of
    from scen_cli.serving.server import listen, local_app, run, vllm_app

    hosts, origins = hosts_of(host, allowed_host or ()), tuple(allow_origin or ())
    options = ServerOptions(name, api_key, timeout, batch, max_queue, hosts, origins)
    if vllm and adapters:
        app = vllm_app(editor, options, vllm, adapters, base_model=vllm_model, api_key=vllm_key)
    else:
        app = local_app(editor, options)
    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        out.warn("anyone who reaches this address may ask: `--api-key-file` or SCEN_API_KEY asks for a key")
    at = listen(host, port)
    edits = len(editor.patch().expert_of)
    url = f"http://{host}:{at.getsockname()[1]}/v1"
    out.result({"url": url, "model": app.model, "edits": edits}, f"serving `{app.model}`, {edits} edits, at {url}")
    run(app, at)


def _checked_key(key: str | None, file: Path | None) -> str | None:
    """The API key, which may be in a file. Raises `UsageError` if there are two, or it is empty."""
    if file is not None:
        if key is not None:
            raise UsageError("there are two API keys", hint="give `--api-key-file`, `--api-key` or SCEN_API_KEY alone")
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read an API key from `{file}`: {error}") from error
    if key is not None and not key.strip():
        raise UsageError("the API key is empty", hint="leave it away to ask for none")
    return key
