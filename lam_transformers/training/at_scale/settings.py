"""The settings of the mixed run."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Phase:
    """How often each kind of step is drawn until a share of the run has passed."""

    until: float
    distillation: float
    retrieval: float
    similarity: float
    long: float


FIRST_PHASES = (
    Phase(0.33, distillation=0.94, retrieval=0.0, similarity=0.0, long=0.06),
    Phase(0.72, distillation=0.40, retrieval=0.46, similarity=0.06, long=0.08),
    Phase(1.0, distillation=0.28, retrieval=0.40, similarity=0.24, long=0.08),
)
# Of a run that goes on from a trained LAM.
NEXT_PHASES = (
    Phase(0.5, distillation=0.36, retrieval=0.46, similarity=0.11, long=0.07),
    Phase(1.0, distillation=0.26, retrieval=0.44, similarity=0.23, long=0.07),
)


@dataclass(kw_only=True)
class RunSettings:
    """What decides a run; the defaults are those of the run in docs/TRAINING.md.

    Attributes:
        start: "init" for an untrained LAM from the base model (`lam init`), or a LAM folder.
        gate_rank: rank of the output gate of an untrained LAM.
        two_way: "slow": the slow memories read two ways; "none": no memory does.
        chunk: tokens of a chunk of two-way reading, `two_way_chunk` of the trained model's configuration.
        seconds: how long the run takes; phases and learning rate follow the share of the time that has passed.
        steps: a number of updates instead, whose share then counts; None: by time.
        learning_rate: at its peak, of the memories; the others have a share of it (`run.GROUP_SCALES`).
        warmup_steps: updates in which the learning rate rises.
        alpha: share of the larger teacher in a cosine.
        budget: tokens of a batch of distillation.
        queries: of a batch of retrieval.
        marks: shares of the run after which the weights are kept and the dev scores taken, as at the end.
        short_dimensions: leading dimensions that are trained as an embedding of their own (Matryoshka).
        max_tokens: of a text, without special tokens.
        long_lengths, long_shares: tokens of long passages, and how often each length is drawn.
        long_budget: tokens of a batch of long passages.
        chunk_tokens: of the chunks to which a long passage is compared, without special tokens.
        hidden_until: share of the run until which the teacher's hidden states are learnt too.
        embeddings_from: share of the run from which word embeddings are trained.
        phases: until which share of the run, and how often each kind of step is drawn until then.
        average: decay of the mean of the weights that is kept beside them.
        seed: of the weights and of the batches.
    """

    start: str = "init"
    gate_rank: int = 32
    two_way: str = "slow"
    chunk: int = 64
    seconds: float = 730.0
    steps: int | None = None
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    alpha: float = 0.55
    budget: int = 65536
    queries: int = 512
    marks: tuple[float, ...] = (0.33, 0.6, 0.85)
    short_dimensions: int = 128
    max_tokens: int = 254
    long_lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    long_shares: tuple[float, ...] = (0.3, 0.3, 0.2, 0.12, 0.08)
    long_budget: int = 32768
    chunk_tokens: int = 254
    hidden_until: float = 0.3
    embeddings_from: float = 0.2
    phases: tuple[Phase, ...] = FIRST_PHASES
    average: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        if self.two_way not in ("none", "slow"):
            raise ValueError(f"two_way must be 'none' or 'slow', which a LAM can have, got {self.two_way!r}.")
        if len(self.long_lengths) != len(self.long_shares):
            raise ValueError(
                f"long_shares needs one share for each of long_lengths {self.long_lengths}, got {self.long_shares}."
            )
        if min(self.long_lengths) < self.chunk_tokens:
            raise ValueError(
                f"long_lengths must be at least chunk_tokens ({self.chunk_tokens}), got {min(self.long_lengths)}."
            )


def next_run(**settings: Any) -> RunSettings:
    """Settings of a run that goes on from a trained LAM: no hidden states, all parameters from the first update on."""
    return RunSettings(hidden_until=0.0, embeddings_from=0.0, phases=NEXT_PHASES, **settings)
