"""LAM in MTEB: the model's metadata, and tasks on local files (mteb itself would download its data)."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import mteb
from datasets import Dataset
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from safetensors import safe_open

from ..io.loading import load_sentence_transformer
from ..model.checks_lam import read_json, weights_checksum
from ..scoring.retrieval import read_beir
from ..scoring.sts import read_pairs

# Data sets of MTEB whose queries or texts are among the training texts (docs/LAB_BOOK.md), without labels or
# relevance judgements. What all-MiniLM-L6-v2 was trained on counts through `adapted_from`.
TRAINING_TEXTS = (
    "Banking77Classification",
    "CQADupstackRetrieval",
    "ClimateFEVER",
    "DBPedia",
    "FEVER",
    "FiQA2018",
    "HotpotQA",
    "MSMARCO",
    "NQ",
    "QuoraRetrieval",
    "TRECCOVID",
    "Touche2020",
)


def _load(name: str, revision: str | None = None, *, folder: str, **options) -> SentenceTransformerEncoderWrapper:
    """On the code of this package; `options` are those of the wrapper, and a device."""
    model = load_sentence_transformer(folder, options.pop("device", None))
    model.truncate_dim = options.get("embed_dim")
    return SentenceTransformerEncoderWrapper(model, **options)


def lam_meta(folder: str | os.PathLike) -> ModelMeta:
    """What MTEB wants to know about the model in a LAM folder, and how to load it.

    The revision is the checksum of the weights, so that results of other weights are never taken from MTEB's cache.
    """
    path = Path(folder).resolve()
    config = read_json(path / "config.json")
    weights = path / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return ModelMeta(
        loader=_load,
        loader_kwargs={"folder": str(path)},
        name=f"LAM/{path.name}",
        revision=weights_checksum(weights)[:16],
        release_date=None,
        languages=["eng-Latn"],
        n_parameters=parameters,
        n_embedding_parameters=config["vocab_size"] * config["hidden_size"],
        memory_usage_mb=round(4 * parameters / 2**20, 1),
        max_tokens=math.inf,
        embed_dim=config["hidden_size"],
        license="apache-2.0",
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["Sentence Transformers", "PyTorch", "Transformers", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=set(TRAINING_TEXTS),
        adapted_from="sentence-transformers/all-MiniLM-L6-v2",
    )


def stsbenchmark(path: Path) -> AbsTask:
    """MTEB's STSBenchmark with the test split of a pair file (see `read_pairs`)."""
    first, second, scores = read_pairs(path)
    task = mteb.get_task("STSBenchmark")
    columns = {"sentence1": first, "sentence2": second, "score": scores.tolist()}
    task.dataset = {"test": Dataset.from_dict(columns)}
    task.data_loaded = True
    return task


class LocalRetrieval(AbsTaskRetrieval):
    """A retrieval task on texts that are already here.

    Args:
        name: what MTEB calls the task.
        corpus: texts of the documents by id.
        queries: texts of the queries by id.
        relevance: relevance by query and document; queries without a relevant document are left out.
    """

    def __init__(
        self,
        name: str,
        corpus: Mapping[str, str],
        queries: Mapping[str, str],
        relevance: Mapping[str, Mapping[str, int]],
    ):
        self.metadata = TaskMetadata(
            name=name,
            description=f"Retrieval in the local corpus {name}.",
            dataset={"path": f"local/{name}", "revision": "local"},
            type="Retrieval",
            category="t2t",
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )
        super().__init__()
        positive = {q: {d: s for d, s in scores.items() if s > 0} for q, scores in relevance.items()}
        positive = {q: scores for q, scores in positive.items() if scores and q in queries}
        split = RetrievalSplitData(
            corpus=Dataset.from_list([{"id": i, "text": text} for i, text in corpus.items()]),
            queries=Dataset.from_list([{"id": i, "text": text} for i, text in queries.items() if i in positive]),
            relevant_docs=positive,
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def beir_task(name: str, folder: Path) -> LocalRetrieval:
    """A retrieval task on a folder in the BEIR layout (see `read_beir`)."""
    return LocalRetrieval(name, *read_beir(folder))
