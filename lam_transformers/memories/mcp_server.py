"""A memory for assistants that speak the Model Context Protocol."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from .memory import Memory

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer


def build(memory: Memory, user_id: str | None = None) -> "MCPServer":
    """An MCP server over a memory.

    Args:
        memory: the memory.
        user_id: whose memories all calls are about; an assistant cannot name another user. None: the shared ones.

    Raises ImportError without the package mcp.
    """
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp_types import ToolAnnotations
    except ImportError as error:
        raise ImportError('The MCP server needs mcp: pip install "lam-transformers[memory]".') from error

    own = memory.within(user_id=user_id)
    server = MCPServer(
        "lam-memory",
        instructions="Long-term memory of this user. Recall before answering what may have been said before; remember "
        "what should last.",
    )
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    writes = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
    erases = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)

    @server.tool(annotations=writes)
    def remember(
        text: Annotated[str, Field(description="What to remember, in whole sentences.")],
        key: Annotated[
            str | None, Field(description="Name of a fact, such as 'home city': the text supersedes its older value.")
        ] = None,
    ) -> dict[str, Any]:
        """Remember something about the user for good."""
        return own.add(text, key=key)[0].as_dict()

    @server.tool(annotations=reads)
    def recall(
        query: Annotated[str, Field(description="A question or some words.")],
        top_k: Annotated[int, Field(ge=1, le=50, description="Number of memories, at most.")] = 5,
        as_of: Annotated[
            str | None, Field(description="Answer from what was known then (ISO 8601 with a zone).")
        ] = None,
    ) -> list[dict[str, Any]]:
        """Find what was said or read before, best first."""
        return [result.as_dict() for result in own.search(query, top_k=top_k, as_of=as_of)]

    @server.tool(annotations=erases)
    def forget(id: Annotated[str, Field(description="Id of a memory, as recall gives it.")]) -> str:
        """Forget a memory for good; nothing of it remains."""
        own.delete(id)
        return f"Forgot {id}."

    @server.tool(name="list", annotations=reads)
    def list_(
        limit: Annotated[int, Field(ge=1, le=500)] = 50, offset: Annotated[int, Field(ge=0)] = 0
    ) -> list[dict[str, Any]]:
        """List what is remembered, oldest first."""
        return [record.as_dict() for record in own.list(limit=limit, offset=offset)]

    @server.tool(annotations=reads)
    def history(id: Annotated[str, Field(description="Id of a memory.")]) -> list[dict[str, Any]]:
        """All versions of a memory, oldest first."""
        return [record.as_dict() for record in own.history(id)]

    @server.tool(annotations=writes)
    def add_document(
        text: Annotated[str, Field(description="The whole text, plain or Markdown.")],
        title: Annotated[str | None, Field(description="Under the same title a changed text is a new version.")] = None,
    ) -> dict[str, Any]:
        """Remember a whole document."""
        return own.add_document(text, title=title).as_dict()

    return server


def serve(memory: Memory, user_id: str | None, transport: str, host: str, port: int) -> None:
    """Serve until the client goes. Raises ValueError for a transport that there is not."""
    if transport not in ("stdio", "http"):
        raise ValueError(f"--transport must be stdio or http, got {transport!r}.")
    server = build(memory, user_id)
    if transport == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", host=host, port=port)
