"""The suite's settings on the small data of conftest.py, and a progress that keeps what it is told."""

from lam_transformers.evaluation.part import Settings
from lam_transformers.evaluation.parts.memory import MemorySettings
from lam_transformers.evaluation.parts.retrieval import RetrievalSettings
from lam_transformers.evaluation.parts.scaling import ScalingSettings
from lam_transformers.evaluation.research.ablation import AblationSettings
from lam_transformers.evaluation.research.babi import BabiSettings
from lam_transformers.evaluation.research.long_context import LongContextSettings
from lam_transformers.evaluation.research.pillars import PillarSettings
from lam_transformers.evaluation.research.recall import RecallSettings
from lam_transformers.io.progress import Silent

SMALL_LONG_CONTEXT = LongContextSettings(
    sensitivity_lengths=(200,),
    sensitivity_texts=1,
    facts=8,
    retention_lags=(1, 8, 40),
    probe_lengths=(120,),
    probe_documents=3,
)
SMALL_SCALING = ScalingSettings(lengths=(16, 1_000, 1_100, 1_200), baseline_limit=1_100)
SMALL = Settings(
    resamples=40,
    parts=(
        SMALL_SCALING,
        SMALL_LONG_CONTEXT,
        RetrievalSettings(document_tokens=90, leval_documents=4, retrieval_books=3, book_segments=1, book_tokens=80),
        MemorySettings(memory_conversations=2, memory_pillars=1, memory_distractors=4, memory_details=4),
        RecallSettings(recall_pairs=(4, 16), recall_trials=3),
        BabiSettings(babi_tasks=(1,), babi_questions=30),
        AblationSettings(ablation_books=3, ablation_tokens=60),
        PillarSettings(separation_pairs=10, salience_tokens=1_200),
    ),
)


class Lines(Silent):
    """A `Progress` that keeps the lines it was told."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)
