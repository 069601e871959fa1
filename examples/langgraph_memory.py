"""LangGraph's long-term memory in a file of LAM's: a graph that remembers, and answers from what it remembers.

    python examples/langgraph_memory.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1). No language model is needed: the answer is what was found.
"""

import tempfile
from pathlib import Path

from handbook import model_from_arguments
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from typing_extensions import TypedDict

from lam_transformers.integrations.langgraph import LAMStore
from lam_transformers.memories import Memory


class Turn(TypedDict, total=False):
    """user: who speaks; said: what; answer: of the graph."""

    user: str
    said: str
    answer: str


def answer(state: Turn, runtime: Runtime) -> Turn:
    """A question is looked up among the user's own items, all else is put there."""
    namespace = ("memories", state["user"])
    if not state["said"].endswith("?"):
        runtime.store.put(namespace, state["said"][:80], {"text": state["said"]})
        return {"answer": "I will remember that."}
    items = runtime.store.search(namespace, query=state["said"], limit=1)
    return {"answer": items[0].value["text"] if items else "You have told me nothing yet."}


def build_graph(store: BaseStore):
    graph = StateGraph(Turn)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(store=store)


def main() -> None:
    model = model_from_arguments()
    with tempfile.TemporaryDirectory() as folder, Memory(Path(folder) / "memory.db", model=model) as memory:
        graph = build_graph(LAMStore(memory, fields=["text"]))
        for user, said in (
            ("ada", "My sister Vera keeps bees behind the old mill."),
            ("ada", "The landlord sends a plumber on Thursday."),
            ("ben", "I sing in the cathedral choir."),
            ("ada", "Who has something to do with insects?"),
            ("ben", "Who has something to do with insects?"),
        ):
            print(f"{user}: {said}\n  {graph.invoke({'user': user, 'said': said})['answer']}")


if __name__ == "__main__":
    main()
