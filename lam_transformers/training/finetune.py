"""Stage 3, fine-tuning with labels: sentence-transformers' trainer and losses, and what they lack."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.training_args import BatchSamplers, MultiDatasetBatchSamplers
from sentence_transformers.util import mine_hard_negatives
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from ..io.atomic import atomic_file, write_text
from ..io.files import find_files
from ..io.loading import is_lam
from ..model.modeling_lam import LAMModel
from ..model.sentence_transformers_module import LAMTransformer
from ..scoring.sts import evaluate_sts
from .cache import EmbeddingCache, Teacher, model_key
from .data import evaluation_sentences, normalise, read_texts, sample
from .loop import (
    RunLog,
    check_finite,
    learning_rate_factor,
    learning_rates,
    parameter_groups,
    process_state,
    replace_folder,
)
from .losses import orthogonality_loss, similarity_loss
from .pairs import PairSource, cut_texts, read_source, write_report
from .trainer import RunConfig, RunProgress, Trainer


@dataclass(kw_only=True)
class FinetuneConfig(RunConfig):
    """What decides a run of fine-tuning.

    Attributes:
        sources: fields of a `PairSource` each. Scored pairs are learnt by `ScoredPairsLoss`, pairs and triplets against
            the other texts of the batch. Batches come from the sources in proportion to their numbers of rows.
        batch_size: rows (pairs, triplets, texts) in a batch.
        mini_batch_size: larger batches of pairs and triplets go through the model in parts of this size, with cached
            gradients (Gao et al. 2021), so that memory does not bound `batch_size`.
        scale: inverse temperature of both losses.
        guide: Hub id, folder or stage:NAME of a model against false negatives (Solatorio 2024, "GISTEmbed"): of pairs
            and triplets, texts of the batch that it holds for nearer than the pair are no negatives. It reads texts
            without a prompt. Empty: none.
        guide_margin: then texts nearer than its cosine of the pair, less this, are no negatives either.
        cosine_weight: of the squared error in `ScoredPairsLoss`.
        dimensions: the losses are averaged over these numbers of leading dimensions (Matryoshka); empty: all only.
        frozen: prefixes of the names of parameters that stay as they are, such as encoder.layer.0. in a BERT.
        retention_text: files or folders of texts whose embeddings should stay what they were before the stage.
        retention_texts: number of them, chosen at random; they are a source of their own.
        retention_weight, retention_similarity_weight: of 1 - cosine to the embedding before, and of `similarity_loss`.
            The gradient of a batch of pairs is much longer than `clip_norm`, one of retention much shorter at weights
            of 1: clipping does not balance them by itself.
    """

    steps: int = 500
    warmup_steps: int = 50
    decay_steps: int = 450
    learning_rate: float = 2e-4
    sources: list[dict[str, Any]] = field(default_factory=list)
    max_length: int = 128
    batch_size: int = 32
    mini_batch_size: int = 64
    scale: float = 20.0
    guide: str = ""
    guide_margin: float = 0.0
    cosine_weight: float = 200.0
    dimensions: list[int] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    retention_text: list[str] = field(default_factory=list)
    retention_texts: int = 0
    retention_weight: float = 10.0
    retention_similarity_weight: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("fine-tuning needs at least one of `sources`.")
        names = Counter(PairSource(**source).name for source in self.sources)
        if twice := [name for name, count in names.items() if count > 1 or name == "retention"]:
            raise ValueError(f"Give these sources names of their own: {', '.join(twice)}.")
        if self.retention_texts and not self.retention_text:
            raise ValueError("retention_texts needs retention_text: files or folders of texts.")


class ScoredPairsLoss(losses.CoSENTLoss):
    """CoSENT + cosine_weight mean((cosine - score)^2), scores [B], 1 for the same meaning.

    CoSENT (Su 2022) asks only for the order of the pairs of a batch: the cosines are then free to bend away from the
    scores, and a correlation that is not one of ranks falls.
    """

    def __init__(self, model: SentenceTransformer, scale: float, cosine_weight: float) -> None:
        super().__init__(model, scale=scale)
        self.squared_error = losses.CosineSimilarityLoss(model)
        self.cosine_weight = cosine_weight

    def compute_loss_from_embeddings(self, embeddings: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """embeddings: of the first and of the second sentences, [B, D] each; labels: scores [B]. Scalar."""
        order = super().compute_loss_from_embeddings(embeddings, labels)
        return order + self.cosine_weight * self.squared_error.compute_loss_from_embeddings(embeddings, labels)


class RetentionLoss(nn.Module):
    """Keeps embeddings near those before the stage, which come as labels [B, D].

    embedding_weight (1 - cosine) + similarity_weight `similarity_loss` of the in-batch similarities.
    """

    def __init__(self, model: SentenceTransformer, embedding_weight: float, similarity_weight: float) -> None:
        super().__init__()
        self.model = model
        self.embedding_weight = embedding_weight
        self.similarity_weight = similarity_weight

    def forward(self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        """sentence_features: of one column of B texts; labels: their embeddings before, [B, D]. Scalar."""
        (features,) = sentence_features
        ours = F.normalize(self.model(features)["sentence_embedding"].float(), dim=-1)
        before = F.normalize(labels.float(), dim=-1)
        distance = (1 - (ours * before).sum(-1)).mean()
        return self.embedding_weight * distance + self.similarity_weight * similarity_loss(
            ours @ ours.T, before @ before.T
        )


def encoder_of(model: LAMModel, tokenizer: PreTrainedTokenizerBase) -> SentenceTransformer:
    """A LAM with mean pooling and normalisation, as `lam export` makes it."""
    return SentenceTransformer(modules=[LAMTransformer(model, tokenizer), Normalize()], device=str(model.device))


def load_student(student: str | Path) -> tuple[LAMModel | SentenceTransformer, PreTrainedTokenizerBase]:
    """What a stage starts from, in float32, and its tokenizer: a `LAMModel`, or another model to become a teacher.

    Args:
        student: LAM folder; or folder or Hub id of a model that sentence-transformers loads.
    """
    if is_lam(student):
        tokenizer = AutoTokenizer.from_pretrained(student, trust_remote_code=False)
        return LAMModel.from_pretrained(student, dtype=torch.float32), tokenizer
    encoder = Teacher(str(student)).load().requires_grad_()
    return encoder, encoder.tokenizer


class LikeLengthBatches(DefaultBatchSampler):
    """Batches of rows of like length, for a model that pads: every epoch others, in random order.

    The rows are shuffled, sorted by their longest text within each 16 batches of them, and cut into batches.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, **options)
        columns = [dataset[name] for name in dataset.column_names if name != "score"]
        self.lengths = [max(map(len, row)) for row in zip(*columns, strict=True)]

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths)).tolist()
        size = self.batch_size
        pools = [order[i : i + 16 * size] for i in range(0, len(order), 16 * size)]
        order = [row for pool in pools for row in sorted(pool, key=self.lengths.__getitem__)]
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == size]
        yield from (batches[i] for i in random.permutation(len(batches)))


def padding_batches(dataset: Dataset, **options: Any) -> DefaultBatchSampler:
    """Of scored pairs, `LikeLengthBatches`; where the others of a batch are negatives, none twice in it."""
    kind = LikeLengthBatches if "score" in dataset.column_names else NoDuplicatesBatchSampler
    return kind(dataset, **options)


class _Trainer(SentenceTransformerTrainer):
    """sentence-transformers' trainer that stops at a loss that is not finite and never loses a checkpoint."""

    run: "Finetuner"

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        run = self.run
        step = self.state.global_step
        run.progress.tokens += sum(int(x.sum()) for name, x in inputs.items() if name.endswith("attention_mask"))
        what = inputs.get("dataset_name", "")
        loss = super().training_step(model, inputs, num_items_in_batch)
        check_finite(float(loss), step, f"batch of {what}", run.folder)
        run.progress.losses[f"loss_{what}"] = float(loss)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        weight = self.run.config.orthogonality_weight
        loss = loss + weight * orthogonality_loss(self.model[0].model) if weight else loss
        return (loss, {}) if return_outputs else loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            where = self.run.folder / f"checkpoint-{self.state.global_step}"
            raise OSError(f"{where} could not be written, the one before is kept: {error}") from error


class _Watcher(TrainerCallback):
    """Validation, selection, log and the record beside each checkpoint."""

    def __init__(
        self,
        run: "Finetuner",
        log: RunLog,
        evaluate_every: int,
        checkpoint_every: int,
        on_step: Callable[[RunProgress], None] | None,
        last: int,
    ) -> None:
        self.run = run
        self.log = log
        self.evaluate_every = evaluate_every
        self.checkpoint_every = checkpoint_every
        self.on_step = on_step
        self.last = last
        self.began = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        progress = self.run.progress
        progress.step = state.global_step
        progress.seconds += time.monotonic() - self.began
        due = progress.step % self.evaluate_every == 0 or progress.step == self.run.config.steps
        if due and state.is_world_process_zero:
            self.run.evaluate(self.log)
        if self.on_step is not None:
            self.on_step(progress)
        control.should_training_stop = progress.step >= self.last
        control.should_save = progress.step % self.checkpoint_every == 0 or progress.step >= self.last

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        progress = self.run.progress
        if "loss" not in logs or not state.is_world_process_zero:
            return
        progress.losses["loss"] = logs["loss"]
        record = {
            "step": state.global_step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            "loss": logs["loss"],
            "gradient_norm": logs["grad_norm"],
            "learning_rate": logs["learning_rate"],
        }
        parts = {name: round(x, 6) for name, x in progress.losses.items() if name.startswith("loss_")}
        self.log.write(record | parts)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        record = {"config": asdict(self.run.config), "progress": asdict(self.run.progress)}
        write_text(self.run.folder / f"checkpoint-{state.global_step}" / "progress.json", json.dumps(record, indent=1))


class Finetuner(Trainer):
    """A run of fine-tuning, from a start or from its last checkpoint.

    Besides checkpoints, log and the best model, the folder of the run holds data.json and mined negatives.

    Args:
        data: folder that relative paths of the sources and of retention_text start from.
        exclude: evaluation sets; a row that shares a sentence with them is dropped (see `PairSource.keep_overlap`).
        arguments: those of `Trainer`. The student may also be a SentenceTransformer, to make a teacher of it (with
            `train_everything`, and perhaps `frozen`). The embeddings of the model before the stage are kept in
            `cache_folder`.

    Raises:
        ValueError: for settings that only a LAM can have; by `prepare`, for sources without pairs.
    """

    config: FinetuneConfig

    def __init__(self, *, data: str | Path = Path(), exclude: Sequence[str | Path] = (), **arguments: Any) -> None:
        super().__init__(**arguments)
        self.data = Path(data)
        self.exclude = exclude
        student = self.student
        config = self.config
        is_a_lam = isinstance(student, LAMModel)
        if not is_a_lam and (config.orthogonality_weight or not config.train_everything):
            raise ValueError("The student is no LAM: set train_everything, and no orthogonality_weight.")
        self.encoder = encoder_of(student, self.tokenizer) if is_a_lam else student
        self.batch_sampler = BatchSamplers.NO_DUPLICATES if is_a_lam else padding_batches

    def _prepare(self) -> None:
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        excluded = evaluation_sentences(self.exclude)
        self.datasets = DatasetDict()
        counts: dict[str, Counter[str]] = {}
        sources = [PairSource(**source) for source in config.sources]
        for source in sources:
            rows, counts[source.name] = read_source(
                source, self.encoder.tokenizer, config.max_length, excluded, config.seed, self.data
            )
            self.datasets[source.name] = self._with_negatives(source, rows)
        if config.guide and all("score" in data.column_names for data in self.datasets.values()):
            raise ValueError(f"guide {config.guide} has nothing to do: all sources are scored pairs.")
        self.guide = Teacher(config.guide).load(str(self.encoder.device)) if config.guide else None
        if config.retention_texts:
            self.datasets["retention"] = self._retention(excluded)
        write_report(self.folder, counts, sources, len(excluded))
        torch.manual_seed(config.seed)

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint: the record in it is written last."""
        complete = [p for p in self.folder.glob("checkpoint-*") if (p / "progress.json").exists()]
        return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)

    def _with_negatives(self, source: PairSource, rows: list[dict[str, Any]]) -> Dataset:
        """The rows as a data set, with mined negatives where the source asks for them; mined once for a run."""
        data = Dataset.from_list(rows)
        if not source.hard_negatives:
            return data
        kept = self.folder / "mined" / f"{source.name}.jsonl"
        if not kept.exists():
            mined = mine_hard_negatives(
                data.select_columns(["anchor", "positive"]),
                self.encoder,
                num_negatives=source.hard_negatives,
                range_max=50,
                relative_margin=0.05,
                output_format="n-tuple",
                batch_size=64,
                faiss_batch_size=2048,
                verbose=False,
            )
            kept.parent.mkdir(exist_ok=True)
            with atomic_file(kept) as temporary:
                mined.to_json(temporary)
        rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
        if not rows:
            raise ValueError(f"No text of {source.path} is a hard negative of another; set hard_negatives to 0.")
        return Dataset.from_list(rows)

    def _retention(self, excluded: frozenset[str]) -> Dataset:
        """Texts, and as labels their embeddings by the model before the stage."""
        config = self.config
        pairs = read_texts(find_files(self.data / path for path in config.retention_text))
        chosen = sample((text for _, text in pairs), config.retention_texts, config.seed)
        texts = sorted({text for text in chosen if normalise(text) not in excluded})
        texts = list(dict.fromkeys(cut_texts(texts, self.encoder.tokenizer, config.max_length)))
        cache = EmbeddingCache(self.cache_folder / f"before-{model_key(self.encoder)}", self._width)
        advance = self.reports_to.task("Embedding by the model before", len(texts)).advance

        def encode(block: list[str]) -> np.ndarray:
            return self.encoder.encode(block, batch_size=64, show_progress_bar=False)

        places = cache.fill(texts, encode, advance)
        return Dataset.from_dict({"text": texts, "label": list(cache.rows(places))})

    @property
    def _width(self) -> int:
        width = self.encoder.get_embedding_dimension()
        assert width is not None
        return width

    def _loss(self, name: str, data: Dataset) -> nn.Module:
        config = self.config
        model = self.encoder
        if name == "retention":
            return RetentionLoss(model, config.retention_weight, config.retention_similarity_weight)
        if "score" in data.column_names:
            loss: nn.Module = ScoredPairsLoss(model, config.scale, config.cosine_weight)
        else:
            loss = self._contrast()
        if not config.dimensions:
            return loss
        count = len(config.dimensions)
        return losses.MatryoshkaLoss(model, loss, config.dimensions, [1 / count] * count)

    def _contrast(self) -> nn.Module:
        """The loss of pairs and triplets, with cached gradients where a batch is more than a mini-batch."""
        config = self.config
        model = self.encoder
        cached: dict[str, Any] = (
            {"mini_batch_size": config.mini_batch_size} if config.batch_size > config.mini_batch_size else {}
        )
        if self.guide is not None:
            guided: Any = losses.CachedGISTEmbedLoss if cached else losses.GISTEmbedLoss
            return guided(model, self.guide, temperature=1 / config.scale, margin=config.guide_margin, **cached)
        plain: Any = losses.CachedMultipleNegativesRankingLoss if cached else losses.MultipleNegativesRankingLoss
        return plain(model, scale=config.scale, **cached)

    def run(
        self,
        evaluate_every: int = 250,
        checkpoint_every: int = 250,
        on_step: Callable[[RunProgress], None] | None = None,
        stop_after: int | None = None,
    ) -> RunProgress:
        """Train until `config.steps`, see `Trainer.run`."""
        if self.progress.step >= self.config.steps:
            return self.progress
        self.prepare()
        config = self.config
        model = self.encoder.transformers_model
        groups = parameter_groups(model, self._rates(model), config.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, config.beta2), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, config))
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(self.folder),
            max_steps=config.steps,
            per_device_train_batch_size=config.batch_size,
            max_grad_norm=config.clip_norm,
            bf16=config.bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=config.seed,
            save_strategy="no",
            save_total_limit=2,
            logging_steps=10,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            batch_sampler=self.batch_sampler,
            multi_dataset_batch_sampler=MultiDatasetBatchSamplers.PROPORTIONAL,
            dataloader_pin_memory=False,
        )
        last = config.steps if stop_after is None else min(config.steps, self.progress.step + stop_after)
        # The log is one file: of several processes only the first puts it right.
        step = self.progress.step if process_state().is_main_process else None
        log = RunLog(self.folder, self.tensorboard, step)
        watcher = _Watcher(self, log, evaluate_every, checkpoint_every, on_step, last)
        trainer = _Trainer(
            model=self.encoder,
            args=arguments,
            train_dataset=self.datasets,
            optimizers=(optimizer, schedule),
            loss={name: self._loss(name, data) for name, data in self.datasets.items()},
            callbacks=[watcher],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.run = self
        trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        return self.progress

    def _rates(self, model: nn.Module) -> dict[str, float]:
        """The learning rate of every parameter that is trained, by name."""
        rates = learning_rates(model, self.config)
        for prefix in self.config.frozen:
            names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
            if not names:
                raise ValueError(f"frozen: no parameter's name begins with {prefix!r}.")
            for name in names:
                rates.pop(name, None)
                model.get_parameter(name).requires_grad_(False)
        return rates

    def evaluate(self, log: RunLog) -> None:
        """Score on dev; keep the model in `folder`/best if it is the best so far."""
        began = time.monotonic()
        progress = self.progress
        self.encoder.eval()
        dimensions = [size for size in self.config.dimensions if size < self._width]
        score = evaluate_sts(lambda texts: self._encode(texts), self.dev_file, dimensions)
        self.encoder.train()
        numbers = {f"dev_{name}": value for name, value in score.items() if name != "pairs"}
        log.write({"step": progress.step, **numbers, "evaluation_seconds": round(time.monotonic() - began, 1)})
        if score["pearson"] > progress.best_score:
            progress.best_score = score["pearson"]
            progress.best_step = progress.step
            replace_folder(self.folder / "best", lambda to: self.encoder.save(str(to), create_model_card=False))

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        with torch.autocast(self.encoder.device.type, enabled=False):
            return self.encoder.encode(list(texts), batch_size=64, show_progress_bar=False)
