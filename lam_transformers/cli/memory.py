"""`lam memory`: remember, search, correct and forget from the command line."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import clear_errors, echo, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..memories import Memory, MemoryRecord, SearchResult

memory = typer.Typer(
    help="A memory of conversations and documents, in one database. docs/MEMORY.md", no_args_is_help=True
)

keys = typer.Typer(
    help="Keys for `lam serve --memory`, each bound to a user, an assistant or a conversation. docs/SERVING.md",
    no_args_is_help=True,
)
memory.add_typer(keys, name="keys")

Place = Annotated[str, typer.Argument(metavar="MEMORY", help="memory.db, or postgresql://user@host/database.")]
User = Annotated[str | None, typer.Option("--user", help="user_id; without it, what is shared.")]
Agent = Annotated[str | None, typer.Option("--agent", help="agent_id.")]
Run = Annotated[str | None, typer.Option("--run", help="run_id, a conversation.")]
Model = Annotated[str, typer.Option(help="LAM folder or Hub id; 'none' finds by words alone.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]


def _open(place: str, model: str) -> "Memory":
    from ..memories import Memory

    return Memory(place, model=None if model == "none" else model)


def _show(records: "Sequence[MemoryRecord | SearchResult]", as_json: bool) -> None:
    for record in records:
        values = record.as_dict()
        if as_json:
            echo(json.dumps(values, ensure_ascii=False))
            continue
        score = f"{values['score']:.3f}  " if "score" in values else ""
        said = f"{values['role']}: " if values["role"] else ""
        echo(f"{score}{values['id']}  {values['time'][:19]}  {said}{' '.join(values['text'].split())}")


@memory.command()
def add(
    place: Place,
    text: Annotated[str, typer.Argument(help="What to remember; - reads JSON messages from the standard input.")],
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    key: Annotated[str | None, typer.Option(help="Name of the fact; the text supersedes its older value.")] = None,
    model: Model = "LAM-base-v1",
    as_json: AsJson = False,
) -> None:
    """Remember a text, or the turns of a conversation."""
    with clear_errors():
        content = json.load(typer.get_text_stream("stdin")) if text == "-" else text
        with _open(place, model) as opened:
            _show(opened.add(content, user_id=user, agent_id=agent, run_id=run, key=key), as_json)


@memory.command()
def add_document(
    place: Place,
    files: Annotated[list[Path], typer.Argument(help="Plain text, Markdown or PDF.")],
    user: User = None,
    agent: Agent = None,
    title: Annotated[str | None, typer.Option(help="In place of the file's name.")] = None,
    model: Model = "LAM-base-v1",
) -> None:
    """Remember whole documents; the same command again resumes an interrupted one."""
    with clear_errors(), _open(place, model) as opened:
        if title is not None and len(files) > 1:
            raise ValueError("--title names one document; give one file.")
        for path in files:
            record = opened.add_document(path, title=title, user_id=user, agent_id=agent)
            say(f"{record.text}: {record.id}, version {record.version}.")


@memory.command()
def search(
    place: Place,
    query: str,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    top_k: Annotated[int, typer.Option(help="Number of results.")] = 10,
    as_of: Annotated[str | None, typer.Option(help="Answer from what was known at this time (ISO 8601).")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every part of the score, as JSON.")] = False,
    model: Model = "LAM-base-v1",
    as_json: AsJson = False,
) -> None:
    """Find what answers a question."""
    with clear_errors(), _open(place, model) as opened:
        results = opened.search(
            query, user_id=user, agent_id=agent, run_id=run, top_k=top_k, as_of=as_of, explain=explain
        )
        _show(results, as_json or explain)


@memory.command("list")
def list_(
    place: Place,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    limit: Annotated[int, typer.Option(help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show what is remembered."""
    with clear_errors(), _open(place, "none") as opened:
        _show(opened.list(user_id=user, agent_id=agent, run_id=run, limit=limit), as_json)


@memory.command()
def conversations(
    place: Place,
    user: User = None,
    agent: Agent = None,
    limit: Annotated[int, typer.Option(help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show conversations with their turns and times, the one that was last spoken in first."""
    with clear_errors(), _open(place, "none") as opened:
        for record in opened.conversations(user_id=user, agent_id=agent, limit=limit):
            values = record.as_dict()
            if as_json:
                echo(json.dumps(values, ensure_ascii=False))
                continue
            name = record.run_id or "(without a name)"
            with_whom = f" with {record.agent_id}" if record.agent_id else ""
            echo(f"{values['first_time'][:19]}  {values['last_time'][:19]}  {record.turns} turns  {name}{with_whom}")


@memory.command()
def history(place: Place, id: str, as_json: AsJson = False) -> None:
    """Show all versions of a memory."""
    with clear_errors(), _open(place, "none") as opened:
        _show(opened.history(id), as_json)


@memory.command()
def update(place: Place, id: str, text: str, model: Model = "LAM-base-v1") -> None:
    """Supersede a memory by a newer text."""
    with clear_errors(), _open(place, model) as opened:
        _show([opened.update(id, text)], False)


@memory.command()
def forget(
    place: Place,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of memories.")] = None,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    everything: Annotated[bool, typer.Option("--everything", help="All memories of all users.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget memories by id, or all of a user, an assistant or a conversation; nothing of them remains."""
    with clear_errors(), _open(place, "none") as opened:
        if ids:
            for id in ids:
                opened.delete(id, user_id=user)
            say(f"Forgot {len(ids)}.")
            return
        if not yes:
            typer.confirm("Forget all of these for good?", abort=True)
        count = opened.delete_all(user_id=user, agent_id=agent, run_id=run, everything=everything)
        say(f"Forgot {count}.")


@memory.command()
def export(place: Place, out: Annotated[Path, typer.Argument(help="JSON lines file to write.")]) -> None:
    """Write all memories with their history as JSON lines."""
    with clear_errors(), _open(place, "none") as opened:
        say(f"Wrote {opened.export(out)} memories and documents to {out}.")


@memory.command("import")
def import_(
    place: Place,
    source: Annotated[Path, typer.Argument(help="File of lam memory export.")],
    model: Model = "LAM-base-v1",
) -> None:
    """Add the memories of an export; those that are there stay as they are."""
    with clear_errors(), _open(place, model) as opened:
        say(f"Added {opened.import_(source)} memories and documents.")


@memory.command()
def verify(place: Place) -> None:
    """Say what is damaged (exit status 1 if anything is)."""
    with clear_errors(), _open(place, "none") as opened:
        problems = opened.verify()
    for problem in problems:
        echo(problem)
    if problems:
        raise typer.Exit(1)
    say("All is well.")


@memory.command()
def rebuild(place: Place, model: Model = "LAM-base-v1") -> None:
    """Make all vectors, words and states again, with another model perhaps; the same command again resumes."""
    with clear_errors(), _open(place, model) as opened:
        say(f"Rebuilt {opened.rebuild()} memories.")


@memory.command()
def stats(place: Place) -> None:
    """Numbers of memories, users, conversations and documents; size, schema and model."""
    with clear_errors(), _open(place, "none") as opened:
        for name, value in opened.stats().items():
            echo(f"{name}: {value}")


@memory.command()
def mcp(
    place: Place,
    user: User = None,
    transport: Annotated[str, typer.Option(help="stdio, or http (streamable HTTP).")] = "stdio",
    host: Annotated[str, typer.Option(help="Address of http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of http.")] = 8765,
    model: Model = "LAM-base-v1",
) -> None:
    """Serve a memory to assistants that speak the Model Context Protocol (extra `memory`)."""
    with clear_errors():
        from ..memories.mcp_server import serve

        serve(_open(place, model), user, transport, host, port)


@keys.command("add")
def add_key(
    place: Place,
    name: Annotated[str, typer.Argument(help="What to call the key, such as the device that will have it.")],
    user: Annotated[str | None, typer.Option("--user", help="user_id whose memories it opens.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="agent_id that it is bound to.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="run_id that it is bound to.")] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="It may write what is shared, and sees nothing else.")
    ] = False,
) -> None:
    """Make a key and print it; it is shown this once, and only its hash is stored."""
    with clear_errors(), _open(place, "none") as opened:
        from ..memories import Keys, Scope

        if shared == any((user, agent, run)):
            raise ValueError("A key needs a scope: --user, --agent or --run, or --shared for what is shared.")
        echo(Keys(opened.store).add(name, Scope.of(user, agent, run)))
        say("This is the only time that the key is shown.")


@keys.command("list")
def list_keys(place: Place, as_json: AsJson = False) -> None:
    """Show all keys by name, with their scopes and times; not the keys themselves, which are not stored."""
    with clear_errors(), _open(place, "none") as opened:
        from ..memories import Keys

        for key in Keys(opened.store).list():
            values = key.as_dict()
            if as_json:
                echo(json.dumps(values, ensure_ascii=False))
                continue
            bound = ", ".join(f"{name} {values[name]}" for name in ("user_id", "agent_id", "run_id") if values[name])
            state = f"revoked {values['revoked'][:19]}" if key.revoked else "in use"
            echo(f"{key.name}  {bound or 'shared'}  made {values['created'][:19]}  {state}")


@keys.command("revoke")
def revoke_key(place: Place, name: Annotated[str, typer.Argument(help="As `lam memory keys list` shows it.")]) -> None:
    """From now on the key opens nothing."""
    with clear_errors(), _open(place, "none") as opened:
        from ..memories import Keys

        Keys(opened.store).revoke(name)
        say(f"Revoked {name}.")
