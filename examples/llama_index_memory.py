"""LlamaIndex's memory with a long-term block that LAM keeps: what falls out of the short-term memory is found again.

    python examples/llama_index_memory.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1). No language model is needed: what would be sent to it is shown.
"""

import tempfile
from pathlib import Path

from handbook import model_from_arguments
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import Memory

from lam_transformers.integrations.llama_index import LAMMemoryBlock
from lam_transformers.memories import Memory as LAMMemory


def build_memory(memory: LAMMemory, user: str, session: str, tokens: int = 60) -> Memory:
    """A short-term memory of so many tokens (words, here), and everything before it in `memory`."""
    return Memory.from_defaults(
        session_id=session,
        token_limit=tokens,
        token_flush_size=tokens // 4,
        chat_history_token_ratio=0.5,
        memory_blocks=[LAMMemoryBlock(memory=memory, user_id=user, top_k=1)],
        tokenizer_fn=str.split,
    )


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        LAMMemory(Path(folder) / "m.db", model=model_from_arguments()) as kept,
    ):
        memory = build_memory(kept, "ada", "chat-1")
        memory.put(ChatMessage(role="user", content="My sister Vera keeps bees behind the old mill."))
        memory.put(ChatMessage(role="assistant", content="Then you will never be short of honey."))
        for day in ("Monday", "Tuesday", "Wednesday", "Thursday"):
            memory.put(ChatMessage(role="user", content=f"On {day} I have to go to the dentist at nine, remind me."))
            memory.put(ChatMessage(role="assistant", content=f"I will remind you of the dentist on {day}."))
        for message in memory.get(input="Who has something to do with insects?"):
            print(f"{message.role.value}: {message.content}")


if __name__ == "__main__":
    main()
