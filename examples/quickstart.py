"""What LAM does, in one minute: similarities, a semantic search, one long text in a single pass.

    python examples/quickstart.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1), loaded as a stranger would load it.
"""

import sys
import time

import torch
from handbook import HANDBOOK, model_from_arguments, read_passages, read_questions, recall
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

SENTENCES = (
    "A man is playing a guitar on the street.",
    "Someone performs music outdoors.",
    "The parliament passed the new budget.",
    "Lawmakers approved next year's spending plan.",
    "My cat sleeps all day.",
)
SEGMENT = 2048
console = Console()


def show_similarities(encoder: SentenceTransformer) -> None:
    similarity = encoder.similarity(*[encoder.encode(list(SENTENCES))] * 2)
    table = Table(title="Cosine similarity")
    table.add_column("sentence")
    for i in range(len(SENTENCES)):
        table.add_column(f"({i + 1})", justify="right")
    for i, sentence in enumerate(SENTENCES):
        table.add_row(f"({i + 1}) {sentence}", *(f"{x:.2f}" for x in similarity[i].tolist()))
    console.print(table)


def show_search(encoder: SentenceTransformer) -> None:
    passages, questions = read_passages(), read_questions()
    scores = encoder.similarity(encoder.encode([q["question"] for q in questions]), encoder.encode(passages))
    best = scores.topk(5).indices.tolist()
    answers = [[passages[i] for i in row] for row in best]
    table = Table(title=f"Search over {len(passages)} passages of a library's handbook", show_lines=True)
    table.add_column("question", ratio=2)
    table.add_column("best passage", ratio=5)
    for i in (1, 4, 14):
        table.add_row(questions[i]["question"], answers[i][0][:180] + " ...")
    console.print(table)
    console.print(
        f"All {len(questions)} questions: the right passage is the first for {recall(questions, answers, 1):.0%}, "
        f"among the first five for {recall(questions, answers, 5):.0%}."
    )


def show_long_text(model_name: str, tokens: int = 100_000) -> None:
    """One text, read once from left to right: the state carries it from segment to segment."""
    tokenizer = AutoTokenizer.from_pretrained(model_name, trust_remote_code=True)
    model = AutoModel.from_pretrained(model_name, trust_remote_code=True).eval()
    ids = tokenizer(HANDBOOK.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    ids = torch.tensor([(ids * (tokens // len(ids) + 1))[:tokens]])
    before, start = peak_memory(), time.perf_counter()
    state, total = model.new_state(1), torch.zeros(model.config.hidden_size, dtype=torch.float64)
    with torch.inference_mode():
        for i in track(range(0, tokens, SEGMENT), description="Reading", console=console):
            output = model(input_ids=ids[:, i : i + SEGMENT], cache=state)
            total += output.last_hidden_state[0].double().sum(0)
    embedding = torch.nn.functional.normalize(total / tokens, dim=0)
    seconds = time.perf_counter() - start
    console.print(
        f"One text of {tokens:,} tokens in a single pass: {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s), "
        f"peak memory {peak_memory() - before:.0f} MB above what the process held before, "
        f"embedding of {len(embedding)} dimensions."
    )


def peak_memory() -> float:
    """Largest resident set of this process so far, in MB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:
        return 0.0
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main() -> None:
    model_name = model_from_arguments()
    with console.status(f"Loading {model_name}"):
        encoder = SentenceTransformer(model_name, trust_remote_code=True)
    show_similarities(encoder)
    show_search(encoder)
    show_long_text(model_name)


if __name__ == "__main__":
    main()
