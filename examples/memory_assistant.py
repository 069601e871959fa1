"""An assistant without a language model: it remembers what you say, and answers from that alone.

    python examples/memory_assistant.py [memory.db] [user]

What ends in a question mark is looked up; all else is remembered. "forget ID" forgets, an empty line ends.
"""

import sys

from lam_transformers.memories import Memory


def answer(memory: Memory, user: str, line: str) -> str:
    """What the assistant says to a line, which it remembers unless it is a question or an order to forget."""
    if line.startswith("forget "):
        memory.delete(line.removeprefix("forget ").strip(), user_id=user)
        return "Forgotten."
    if not line.endswith("?"):
        memory.add([{"role": "user", "content": line}], user_id=user, run_id="terminal")
        return "I will remember that."
    results = memory.search(line, user_id=user, top_k=3)
    if not results:
        return "You have told me nothing yet."
    return "\n".join(f"{result.memory.time:%d %B %Y}: {result.text}  [{result.id}]" for result in results)


def main() -> None:
    place = sys.argv[1] if len(sys.argv) > 1 else "memory.db"
    user = sys.argv[2] if len(sys.argv) > 2 else "me"
    with Memory(place) as memory:
        for line in iter(lambda: input("> ").strip(), ""):
            try:
                print(answer(memory, user, line))
            except ValueError as error:
                print(error)


if __name__ == "__main__":
    main()
