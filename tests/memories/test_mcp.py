"""The MCP server, asked by the SDK's own client."""

import asyncio
import json
import socket
import subprocess
import sys
import time

import pytest

mcp = pytest.importorskip("mcp", reason="the memory extra is not installed")

from lam_transformers.memories import Memory  # noqa: E402
from lam_transformers.memories.mcp_server import build, serve  # noqa: E402


def call(server, *calls):
    """The answers to calls (tool, arguments), in one session."""

    async def session():
        async with mcp.Client(server) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            return tools, [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(session())


def content(answer):
    assert not answer.is_error, answer.content
    return [json.loads(part.text) for part in answer.content]


def test_remember_recall_history_and_forget(words_only):
    words_only.add("The cat of bob.", user_id="bob")
    server = build(words_only, "ada")
    tools, answers = call(
        server, ("remember", {"text": "The dog is called Rex.", "key": "dog"}),
        ("remember", {"text": "The dog is called Max.", "key": "dog"}), ("recall", {"query": "dog cat"}), ("list", {}),
        ("add_document", {"text": "# Whales\n\nThey sing.", "title": "whales"}),
    )  # fmt: skip
    assert set(tools) == {"remember", "recall", "forget", "list", "history", "add_document"}
    assert tools["recall"].annotations.read_only_hint
    assert tools["forget"].annotations.destructive_hint
    assert "query" in tools["recall"].input_schema["properties"]
    recalled = content(answers[2])
    assert "Rex" not in str(recalled)
    assert "bob" not in str(recalled)
    id = words_only.list(user_id="ada")[0].id
    _, (history, forgotten) = call(server, ("history", {"id": id}), ("forget", {"id": id}))
    assert [version["version"] for version in content(history)] == [1, 2]
    assert not forgotten.is_error
    assert [record.kind for record in words_only.list(user_id="ada")] == ["document"]


@pytest.mark.parametrize("user", ["ada", None])
def test_what_is_anothers_cannot_be_read_or_forgotten(words_only, user):
    other = words_only.add("The secret of bob.", user_id="bob")[0]
    _, answers = call(
        build(words_only, user), ("forget", {"id": other.id}), ("history", {"id": other.id}),
        ("recall", {"query": "secret"}), ("list", {}),
    )  # fmt: skip
    assert answers[0].is_error
    assert answers[1].is_error
    assert "secret of bob" not in str(answers)
    assert words_only.get(other.id).text == "The secret of bob."


def test_an_unknown_transport(words_only):
    with pytest.raises(ValueError, match="stdio or http"):
        serve(words_only, None, "pigeon", "127.0.0.1", 1)


def test_over_stdio(place):
    Memory(place, model=None).close()

    async def session():
        command = mcp.StdioServerParameters(
            command=sys.executable, args=["-m", "lam_transformers.cli", "memory", "mcp", place, "--model", "none"]
        )
        async with mcp.stdio_client(command) as (read, write), mcp.ClientSession(read, write) as client:
            await client.initialize()
            await client.call_tool("remember", {"text": "The dog."})
            return await client.call_tool("recall", {"query": "dog"})

    assert "The dog." in str(asyncio.run(session()).content)


def test_over_streamable_http(place, tmp_path):
    Memory(place, model=None).close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--user", "ada", "--transport", "http", "--port", str(port), "--model", "none"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lam_transformers.cli", "memory", "mcp", place, *options], stdout=log, stderr=log
        )

    async def session():
        async with mcp.Client(f"http://127.0.0.1:{port}/mcp") as client:
            await client.call_tool("remember", {"text": "The dog."})
            return await client.call_tool("recall", {"query": "dog"})

    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (recalled,) = content(asyncio.run(session()))
    finally:
        process.terminate()
        process.wait(30)
    assert (recalled["text"], recalled["user_id"]) == ("The dog.", "ada")
