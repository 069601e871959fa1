"""`lam serve`: an embedding server."""

from pathlib import Path
from typing import Annotated

import typer

from .console import clear_errors, say


def serve(
    model: Annotated[str, typer.Argument(help="Model folder or Hub id.")] = "LAM-base-v1",
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8080,
    api_key_file: Annotated[Path | None, typer.Option(help="File of API keys, one a line; also LAM_API_KEYS.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name that clients may ask for.")] = None,
    workers: Annotated[int, typer.Option(help="Processes behind the port, each with the model.", min=1)] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads of each process's model.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="As torch names it, such as cpu or cuda.")] = None,
    request_tokens: Annotated[int, typer.Option(help="Tokens of one request.", min=16)] = 4_000_000,
    waiting_tokens: Annotated[int, typer.Option(help="Tokens that may wait.", min=16)] = 8_000_000,
    inputs: Annotated[int, typer.Option(help="Texts of one request.", min=1)] = 2048,
    body_megabytes: Annotated[int, typer.Option(help="Megabytes of one request.", min=1)] = 64,
    sessions: Annotated[int, typer.Option(help="Sessions that may exist at once.", min=1)] = 256,
    session_seconds: Annotated[float, typer.Option(help="Life of an unused session.", min=1)] = 3600.0,
    session_folder: Annotated[Path | None, typer.Option(help="Where sessions are kept beyond a restart.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="A memory to serve too: memory.db, or postgresql://user@host/database. docs/MEMORY.md"),
    ] = None,
    memory_open: Annotated[
        bool, typer.Option("--memory-open", help="Let this machine use the memory without a key (lam memory keys add).")
    ] = False,
    memory_strengths: Annotated[
        bool, typer.Option("--memory-strengths", help="Keep strengths of memories, which recall makes stronger.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model. LAM folders need none.")
    ] = False,
) -> None:
    """Serve embeddings to clients of OpenAI, TEI and Ollama, and a memory. docs/SERVING.md has the details."""
    with clear_errors():
        import logging

        from transformers.utils import logging as transformers_logging

        try:
            from ..serving.memory_service import check_memory
            from ..serving.server import bind, configure_logging
            from ..serving.server import serve as run
        except ImportError as error:
            raise ValueError(f"lam serve needs its extra ({error}): pip install 'lam-transformers[serve]'.") from error
        from ..serving.settings import Settings, check_host, read_keys

        transformers_logging.disable_progress_bar()
        keys = read_keys(api_key_file)
        check_host(host, keys)
        settings = Settings(
            model=model,
            names=(Path(model).name or model, *(alias or [])),
            api_keys=keys,
            device=device,
            threads=threads,
            trust_remote_code=trust_remote_code,
            request_tokens=request_tokens,
            waiting_tokens=waiting_tokens,
            inputs=inputs,
            body_bytes=body_megabytes << 20,
            waiting_bytes=4 * (body_megabytes << 20),
            sessions=sessions,
            session_seconds=session_seconds,
            session_folder=None if session_folder is None else str(session_folder),
            memory=memory,
            memory_open=memory_open,
            memory_strengths=memory_strengths,
        )
        warning = check_memory(settings, host)
        listener = bind(host, port)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        who = f"{len(keys)} API keys" if keys else "no API key, so only this machine can reach it"
        configure_logging(logging.root.level)
        say(f"{settings.name} at {address} ({who}).")
        if warning is not None:
            say(warning)
        run(settings, listener, workers, say)
