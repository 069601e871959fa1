"""Memories in Haystack 3: one pipeline writes messages, another one finds them again.

    python examples/haystack_memory.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1).
"""

import tempfile
from pathlib import Path

from handbook import model_from_arguments
from haystack import Pipeline
from haystack.dataclasses import ChatMessage

from lam_transformers.integrations.haystack import LAMMemoryRetriever, LAMMemoryStore, LAMMemoryWriter


def build_writing(store: LAMMemoryStore) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("writer", LAMMemoryWriter(store))
    return pipeline


def build_recall(store: LAMMemoryStore, k: int = 5) -> Pipeline:
    """The messages that it gives go to a chat generator, or to an Agent, before the user's own."""
    pipeline = Pipeline()
    pipeline.add_component("retriever", LAMMemoryRetriever(store, top_k=k))
    return pipeline


def recall(pipeline: Pipeline, user: str, question: str) -> list[str]:
    result = pipeline.run({"retriever": {"query": question, "user_id": user}})
    return [message.text for message in result["retriever"]["memories"]]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LAMMemoryStore(str(Path(folder) / "memory.db"), model=model_from_arguments())
        messages = [
            ChatMessage.from_user("My sister Vera keeps bees behind the old mill."),
            ChatMessage.from_assistant("Then you will never be short of honey."),
            ChatMessage.from_user("The landlord sends a plumber on Thursday."),
        ]
        build_writing(store).run({"writer": {"messages": messages, "user_id": "ada", "run_id": "chat-1"}})
        pipeline = build_recall(store, k=1)
        for user in ("ada", "ben"):
            print(user, recall(pipeline, user, "Who has something to do with insects?"))
        store.memory.close()


if __name__ == "__main__":
    main()
