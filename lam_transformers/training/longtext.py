"""Long texts: a short stage after which embeddings of whole documents stay meaningful."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ..io.files import find_files, read_records
from ..scoring.pooling import packed_mean_pool
from .cache import EmbeddingCache, Teacher, model_key, teacher_embeddings
from .data import TokenTable
from .finetune import encoder_of
from .loop import TrainingLoop, learning_rates, process_state
from .trainer import RunConfig

POSITIONS = "embeddings.position_embeddings.weight"


@dataclass(kw_only=True)
class LongTextConfig(RunConfig):
    """What decides a run on long texts.

    A batch has passages of one length, drawn evenly in its logarithm between `min_length` and `max_length` tokens, two
    from each of some documents.

    Attributes:
        documents: files and folders of records with a `text` or `input` field.
        held_out: files of which the second half, by sorted _id, is left out (`training_half`).
        teacher: whose mean over a passage's chunks is the target: a model of the student's width and space, or "self",
            the student before the stage.
        chunk_tokens: of a chunk, special ones included.
        tokens_per_batch: of the passages; at least two documents are taken whatever they have.
        embedding_weight: of 1 - cosine between a passage's embedding and the normalised mean over its chunks.
        contrastive_weight, temperature: of the cross entropy by which a passage finds the other one of its document
            among the batch (van den Oord et al. 2018).
        late_weight: of 1 - cosine between the mean over a chunk's tokens inside the passage (a late chunk)
            and the embedding of the chunk alone.
        chunk_weight: of 1 - cosine for the chunks read one by one, so that short texts stay what they are.
        reset_share: share of the passages whose state is forgotten at a random token, positions going on.
        position_learning_rate: of the last row of the position table, which all tokens past it share.
        dev_passages, dev_length: passages of documents kept for validation, see `LongTextTrainer.validate`.
    """

    steps: int = 200
    warmup_steps: int = 20
    decay_steps: int = 120
    learning_rate: float = 1e-4
    documents: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    teacher: str = "self"
    chunk_tokens: int = 256
    min_length: int = 512
    max_length: int = 4096
    tokens_per_batch: int = 16384
    embedding_weight: float = 10.0
    contrastive_weight: float = 0.1
    temperature: float = 0.05
    late_weight: float = 0.0
    chunk_weight: float = 10.0
    reset_share: float = 0.2
    position_learning_rate: float = 1e-4
    dev_passages: int = 40
    dev_length: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.chunk_tokens < self.min_length <= self.max_length:
            raise ValueError(
                f"chunk_tokens < min_length <= max_length is wanted, got {self.chunk_tokens}, {self.min_length}, "
                f"{self.max_length}."
            )


def training_half(ids: Sequence[str]) -> list[str]:
    """The ids that training may use: the first half of the sorted ones; the others are for evaluation."""
    return sorted(ids)[: len(ids) // 2]


def read_documents(files: Sequence[Path], halved: Sequence[Path] = ()) -> tuple[list[str], dict[str, Counter[str]]]:
    """The texts of documents, from the fields `text` or `input`, in their order, each once; and counts by file.

    Args:
        halved: files of which only `training_half` is taken.

    Raises ValueError for a file without documents.
    """
    texts: dict[str, None] = {}
    counts: dict[str, Counter[str]] = {}
    for path in files:
        of_file = counts.setdefault(path.name, Counter())
        records = [r for r in read_records(path) if isinstance(r.get("text") or r.get("input"), str)]
        if not records:
            raise ValueError(f"{path} has no documents: expected a field text or input.")
        if path in halved:
            allowed = set(training_half([str(r["_id"]) for r in records]))
            of_file["held out"] = sum(str(r["_id"]) not in allowed for r in records)
            records = [r for r in records if str(r["_id"]) in allowed]
        for text in (r.get("text") or r["input"] for r in records):
            of_file["duplicate" if text in texts else "kept"] += 1
            texts[text] = None
    return list(texts), counts


def chunk_documents(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    chunk_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[TokenTable]:
    """Each text as a table of its chunks: `chunk_tokens` - 2 ids each (no special ones), and the text they come from.

    What is left over at the end of a text is dropped.
    """
    size = chunk_tokens - 2
    tables = []
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        count = len(encoded["input_ids"]) // size
        ids = np.array(encoded["input_ids"][: count * size], dtype=np.int32)
        spans = encoded["offset_mapping"]
        chunks = [text[spans[i * size][0] : spans[(i + 1) * size - 1][1]].encode() for i in range(count)]
        starts = np.concatenate([[0], np.cumsum([len(x) for x in chunks], dtype=np.int64)])
        utf8 = np.frombuffer(b"".join(chunks), dtype=np.uint8)
        tables.append(TokenTable(ids, np.arange(count + 1) * size, utf8, starts))
        if progress is not None:
            progress(1)
    return tables


@dataclass
class Passage:
    """Consecutive chunks of a document."""

    document: int
    first: int
    count: int

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Document and number of each chunk."""
        return [(self.document, i) for i in range(self.first, self.first + self.count)]


class PassageBatches:
    """Pairs of passages; batch `index` is a pure function of the seed.

    Args:
        sizes: number of chunks of each document.
        config: of the run.

    Raises:
        ValueError: if fewer than two documents have two passages.
    """

    def __init__(self, sizes: Sequence[int], config: LongTextConfig) -> None:
        self.sizes = np.asarray(sizes)
        self.config = config
        self.chunk = config.chunk_tokens - 2
        if (self.sizes >= 2 * self._chunks(config.min_length)).sum() < 2:
            raise ValueError(
                f"Too few long texts: two must have {2 * config.min_length} tokens, the longest have "
                f"{sorted(self.sizes * self.chunk)[-2:]}."
            )

    def _chunks(self, tokens: float) -> int:
        return max(int(tokens) // self.chunk, 1)

    def __getitem__(self, index: int) -> list[Passage]:
        """Passages, the two of a document after each other."""
        config = self.config
        random = np.random.default_rng([config.seed, index])
        enough = np.sort(self.sizes)[-2] // 2  # two documents must have two passages
        length = np.exp(random.uniform(np.log(config.min_length), np.log(config.max_length)))
        count = min(self._chunks(length), int(enough))
        able = np.flatnonzero(self.sizes >= 2 * count)
        documents = max(config.tokens_per_batch // (2 * count * self.chunk), 2)
        passages = []
        for document in random.permutation(able)[:documents]:
            free = int(self.sizes[document]) - 2 * count
            # Two places with all that is free spread before, between and after them.
            earlier, later = np.sort(random.integers(0, free + 1, 2))
            passages += [Passage(int(document), int(first), count) for first in (earlier, later + count)]
        return passages


class LongTextTrainer(TrainingLoop):
    """A run on long texts, in one process.

    Args:
        data: folder that relative paths of the configuration start from.
        arguments: those of `Trainer`. The embeddings of chunks are kept in `cache_folder`.

    Raises:
        ValueError: if several processes were started; by `prepare`, for too few long texts, or a teacher of another
            width.
    """

    config: LongTextConfig

    def __init__(self, *, data: str | Path = Path(), **arguments: Any) -> None:
        processes = process_state().num_processes
        if processes > 1:
            raise ValueError(
                f"The stage on long texts runs in one process, got {processes}: start it without torchrun."
            )
        super().__init__(**arguments)
        self.data = Path(data)

    def _prepare(self) -> None:
        config = self.config
        tables = self._read_tables()
        # Every fifth of the documents that are long enough is for validation.
        self.dev_count = max(config.dev_length // (config.chunk_tokens - 2), 1)
        able = [i for i, table in enumerate(tables) if len(table) >= 2 * self.dev_count]
        kept = set(able[2::5]) if config.dev_passages else set()
        self.dev_tables = [tables[i] for i in sorted(kept)]
        self.tables = [table for i, table in enumerate(tables) if i not in kept]
        self.batches = PassageBatches([len(table) for table in self.tables], config)
        self.special = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        needed = sorted({c for i in range(config.steps) for p in self.batches[i] for c in p.chunks})
        self.cache, places = self._targets([self.tables[document].text(i) for document, i in needed])
        width = self.student.config.hidden_size
        if self.cache.dimensions != width:
            raise ValueError(
                f"The teacher is {self.cache.dimensions} wide, the student {width}: name another, or self."
            )
        self.places = dict(zip(needed, places.tolist(), strict=True))
        super()._prepare()

    def _read_tables(self) -> list[TokenTable]:
        """The documents in chunks; what was read goes into data.json."""
        config = self.config
        files = find_files(self.data / path for path in config.documents)
        halved = find_files(self.data / path for path in config.held_out) if config.held_out else []
        texts, counts = read_documents(files, halved)
        self.folder.mkdir(parents=True, exist_ok=True)
        sources = {name: {"counts": dict(of_file)} for name, of_file in counts.items()}
        (self.folder / "data.json").write_text(json.dumps({"sources": sources}, indent=1) + "\n")
        advance = self.reports_to.task("Reading documents", len(texts)).advance
        return chunk_documents(texts, self.tokenizer, config.chunk_tokens, advance)

    def _targets(self, chunks: list[str]) -> tuple[EmbeddingCache, np.ndarray]:
        """The teacher's embeddings of these chunks: a cache, and the row of each chunk."""
        config = self.config
        advance = self.reports_to.task(f"Embedding by {Path(config.teacher).name}", len(chunks)).advance
        if config.teacher != "self":
            return teacher_embeddings(Teacher(config.teacher), chunks, self.cache_folder, config.bf16, advance)
        encoder = encoder_of(self.student, self.tokenizer).eval()
        cache = EmbeddingCache(self.cache_folder / f"before-{model_key(encoder)}", self.student.config.hidden_size)

        def encode(block: list[str]) -> np.ndarray:
            return encoder.encode(block, batch_size=16, show_progress_bar=False)

        return cache, cache.fill(chunks, encode, advance)

    def learning_rates(self, student: nn.Module) -> dict[str, float]:
        """As in every stage, and of the last row of the position table `position_learning_rate`."""
        rates = learning_rates(student, self.config)
        if self.config.position_learning_rate:
            table = student.get_parameter(POSITIONS)
            table.requires_grad_()
            last = torch.zeros(len(table), 1)
            last[-1] = 1
            table.register_hook(lambda gradient: gradient * last.to(gradient))
            rates[POSITIONS] = self.config.position_learning_rate
        return rates

    def _ids(self, passage: Passage, tables: Sequence[TokenTable]) -> np.ndarray:
        """Token ids of a passage between the special ones."""
        table = tables[passage.document]
        inside = table.ids[table.starts[passage.first] : table.starts[passage.first + passage.count]]
        return np.concatenate([[self.special[0]], inside, [self.special[1]]])

    def _read(self, rows: Sequence[np.ndarray], resets: Sequence[int] = ()) -> tuple[torch.Tensor, list[int]]:
        """Hidden states [1, T, D] of texts given as ids, and their N + 1 bounds.

        resets: places in the concatenated texts; the state is forgotten before each.
        """
        device = self.accelerator.device
        ends = list(itertools.accumulate((len(row) for row in rows), initial=0))
        positions = torch.cat([torch.arange(len(row)) for row in rows]).unsqueeze(0)
        ids = torch.from_numpy(np.concatenate(rows).astype(np.int64)).unsqueeze(0)
        bounds = torch.tensor(sorted({*ends, *resets}), device=device)
        output = self.student(input_ids=ids.to(device), position_ids=positions.to(device), cu_seq_lens_q=bounds)
        return output.last_hidden_state, ends

    def _embed(self, rows: Sequence[np.ndarray], resets: Sequence[int] = ()) -> torch.Tensor:
        """Embeddings [N, D]; arguments as `_read`."""
        states, ends = self._read(rows, resets)
        return packed_mean_pool(states, torch.tensor(ends, device=states.device))

    def _late_chunks(self, states: torch.Tensor, starts: Sequence[int], count: int) -> torch.Tensor:
        """Means over the tokens of each chunk of passages read as a whole, normalised: [passages, count, D].

        starts: where in the row of `states` each passage begins.
        """
        size = self.config.chunk_tokens - 2
        inside = torch.stack([states[0, start + 1 : start + 1 + count * size] for start in starts])
        return F.normalize(inside.unflatten(1, (count, size)).float().mean(2), dim=-1)

    def batch_losses(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """See `TrainingLoop`; the parts are embedding and contrastive, and late and chunk where they have a weight."""
        config = self.config
        passages = self.batches[index]
        random = np.random.default_rng([config.seed, index, 1])
        rows = [self._ids(passage, self.tables) for passage in passages]
        starts = itertools.accumulate((len(row) for row in rows[:-1]), initial=0)
        resets = [
            start + int(random.integers(1, len(row)))
            for start, row in zip(starts, rows, strict=True)
            if random.random() < config.reset_share
        ]
        states, ends = self._read(rows, resets)
        ours = packed_mean_pool(states, torch.tensor(ends, device=states.device))
        wanted = np.stack([self.cache.rows(np.array([self.places[c] for c in p.chunks])) for p in passages])
        alone = torch.from_numpy(wanted).to(ours.device)  # [passages, chunks, D]
        target = F.normalize(alone.mean(1), dim=-1)
        logits = (ours @ ours.T / config.temperature).fill_diagonal_(-torch.inf)
        partner = torch.arange(len(ours), device=ours.device) ^ 1
        losses = {
            "embedding": (1 - (ours * target).sum(-1)).mean(),
            "contrastive": F.cross_entropy(logits, partner),
        }
        tokens = sum(map(len, rows))
        if config.late_weight:
            late = self._late_chunks(states, ends[:-1], passages[0].count)
            losses["late"] = (1 - F.cosine_similarity(late, alone, dim=-1)).mean()
        if config.chunk_weight:
            # Of one passage a batch: as many tokens as that has.
            chosen = passages[int(random.integers(len(passages)))]
            single = [self._ids(Passage(document, i, 1), self.tables) for document, i in chosen.chunks]
            theirs = torch.from_numpy(self.cache.rows(np.array([self.places[c] for c in chosen.chunks])))
            cosine = F.cosine_similarity(self._embed(single), theirs.to(ours.device), dim=-1)
            losses["chunk"] = (1 - cosine).mean()
            tokens += sum(map(len, single))
        loss = sum(getattr(config, f"{name}_weight") * x for name, x in losses.items())
        return loss, losses, tokens

    def validate(self) -> tuple[float, dict[str, float]]:
        """The mean of two scores: Pearson on STS-B dev, and `nearest_of_same_source` by document.

        The latter over `dev_passages` passages of `dev_length` tokens from documents that are not trained on.
        """
        score, numbers = super().validate()
        each = max(self.config.dev_passages // max(len(self.dev_tables), 1), 2)
        embeddings = []
        labels = []
        for label, table in enumerate(self.dev_tables):
            starts = np.linspace(0, len(table) - self.dev_count, min(each, len(table) // self.dev_count)).astype(int)
            for first in starts:
                with torch.inference_mode():
                    passage = Passage(label, int(first), self.dev_count)
                    embeddings.append(self._embed([self._ids(passage, self.dev_tables)])[0])
                labels.append(label)
        if len(self.dev_tables) < 2:
            return score, numbers
        accuracy = nearest_of_same_source(torch.stack(embeddings).float().cpu().numpy(), np.array(labels))
        return (score + accuracy) / 2, numbers | {"dev_same_document": accuracy}


def nearest_of_same_source(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """How often the nearest other row by cosine has the same label. embeddings [N, D], labels [N]."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return float((labels[similarity.argmax(1)] == labels).mean())
