# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""LAM as a SentenceTransformer's input module and pooling: no padding runs, texts of any length, bounded memory.

Features are everybody's: one row a text, padded, with an attention mask. Only ids are padded: inside `forward` the real
tokens of a batch are packed one text after the other and run in rows of at most `token_budget` tokens. A longer text is
read in segments with carried state and pooled as it goes.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from sentence_transformers.sentence_transformer.modules import Pooling
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from .checks_lam import check_is_lam
from .packing_lam import segment_size
from .streaming_lam import PIECE, RunningPool, TextTokenizer, check_text, stream

if TYPE_CHECKING:
    # Out of a folder, transformers 5.4 copies only those files that the one it was asked for names itself.
    from .configuration_lam import LAMConfig  # noqa: F401
    from .delta_rule_lam import dual_delta_rule  # noqa: F401
    from .heads_lam import AUTO_MAP  # noqa: F401
    from .memory_lam import LAMMemory  # noqa: F401
    from .modeling_lam import LAMModel
    from .state_lam import LAMState  # noqa: F401

POOLING = ("mean", "max", "lasttoken")
CONFIG = "sentence_lam_config.json"
UNLIMITED = 10**9  # max_seq_length where nothing is truncated: losses and model cards want a number
WIDE = 1 << 20  # ids of a batch, padding included, from which on they are kept small
SEGMENT_STEP = 64  # a long text is cut at multiples of this many tokens from its start
_TRUNCATES = {True: True, "longest_first": True, "only_first": True, False: False, "do_not_truncate": False}


class TextFeatures(dict[str, Any]):
    """A batch's features; states of the tokens are computed only for those who ask for them.

    Args:
        features: the features that are known.
        token_states: computes the states of the tokens, a list of [T, D], one a text.

    accelerate makes a second one of the items alone when it turns bf16 to float32 in training: that has no such states.
    """

    def __init__(self, features: dict[str, Any], token_states: Callable[[], list[torch.Tensor]] | None = None) -> None:
        super().__init__(features)
        self._token_states = token_states

    def __missing__(self, key: str) -> list[torch.Tensor]:
        if key != "token_embeddings" or self._token_states is None:
            raise KeyError(key)
        states = self["token_embeddings"] = self._token_states()
        self["attention_mask"] = [torch.ones(len(x), dtype=torch.long) for x in states]
        return states


class LAMTransformer(InputModule, Pooling):
    """Texts in, pooled embeddings out.

    It is a `Pooling` so that `SentenceTransformer.set_pooling_include_prompt` finds it.

    Args:
        model: a `LAMModel`.
        tokenizer: its fast tokenizer.
        max_seq_length: tokens, special ones included, at which texts are truncated; None: never, and the attribute is
            then 1,000,000,000.
        pooling_mode: "mean", "max" or "lasttoken".
        token_budget: tokens that go through the model at once; None: 2,048 on a CPU, 65,536 elsewhere.
        include_prompt: whether "mean" and "max" take in the tokens of the prompt (and the opening token before them).
    """

    config_file_name = CONFIG
    config_keys = ["max_seq_length", "pooling_mode", "token_budget", "include_prompt"]
    config_key_renames = {}

    def __init__(
        self,
        model: LAMModel,
        tokenizer: Any,
        max_seq_length: int | None = None,
        pooling_mode: Literal["mean", "max", "lasttoken"] = "mean",
        token_budget: int | None = None,
        include_prompt: bool = True,
    ) -> None:
        torch.nn.Module.__init__(self)
        if pooling_mode not in POOLING:
            raise ValueError(f"pooling_mode must be one of {', '.join(POOLING)}, got {pooling_mode!r}.")
        self.model = model
        self.pooling_mode = pooling_mode
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length
        self.token_budget = token_budget
        self.include_prompt = include_prompt

    def __setattr__(self, name: str, value: Any) -> None:
        # SentenceTransformer sets these from outside: say at once what does not fit.
        if name == "tokenizer":
            self.text_tokenizer = TextTokenizer(value)
        if name == "max_seq_length":
            value = UNLIMITED if value is None else checked_length(name, value)
        if name == "token_budget" and value is not None:
            checked_length(name, value, 1)
        super().__setattr__(name, value)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that are saved with the model."""
        unlimited = {"max_seq_length": None} if self.max_seq_length == UNLIMITED else {}
        return super().get_config_dict() | unlimited

    def get_embedding_dimension(self) -> int:
        """Width D of the embeddings."""
        return self.model.config.hidden_size

    @property
    def budget(self) -> int:
        """Tokens that go through the model at once."""
        return self.token_budget or (2048 if self.model.device.type == "cpu" else 65_536)

    @property
    def segment(self) -> int:
        """Tokens of a long text that are read at once."""
        return segment_size(self.model.device, self.model.config.two_way_chunk or SEGMENT_STEP, self.budget)

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        task: str | None = None,
        max_length: int | None = None,
        processing_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Texts -> `input_ids` and `attention_mask` [B, T], padded on the right, and `prompt_length` with a prompt.

        Args:
            inputs: strings.
            prompt: put before each of them.
            task: has no effect, all texts are read alike.
            max_length: truncates in place of `max_seq_length`, in this call.
            processing_kwargs: as for sentence-transformers' own module; {"text": {"max_length": 256}} and {"text":
                {"truncation": False}} are all that LAM can do otherwise in one call.
            kwargs: other options of sentence-transformers, which LAM does not have.

        Raises:
            ValueError: for whatever is not a string and for options that LAM does not have.
        """
        # A TypeError would make SentenceTransformer call again without the prompt.
        if unknown := sorted(name for name, value in kwargs.items() if value is not None):
            raise ValueError(f"LAM's texts are not tokenised with {', '.join(unknown)}; leave it out.")
        limit = UNLIMITED if self.max_seq_length is None else self.max_seq_length
        limit = limit if max_length is None else checked_length("max_length", max_length)
        limit = limit_of_call(processing_kwargs, limit)
        rows = self._tokenised([(prompt or "") + check_text(text) for text in inputs], limit)
        features: dict[str, Any] = padded(rows, getattr(self.tokenizer, "pad_token_id", None) or 0)
        if prompt:
            (ids,) = self.text_tokenizer.encode([prompt])
            features["prompt_length"] = len(ids) - len(self.text_tokenizer.closing)
        return features

    def _tokenised(self, texts: list[str], limit: int) -> list[Any]:
        """Ids of each text, truncated to `limit`; those of a long one are made piece by piece, and no more than needed.

        The ids are the same either way, but the tokenizer needs about 100 bytes for each character at once.
        """
        tokenizer = self.text_tokenizer
        most = max(PIECE, 4 * self.budget)
        long = {i for i, text in enumerate(texts) if tokenizer.can_cut and len(text) > most}
        rows: list[Any] = tokenizer.encode(["" if i in long else text for i, text in enumerate(texts)])
        rows = [row if len(row) <= limit else row[: limit - len(tokenizer.closing)] + tokenizer.closing for row in rows]
        for i in long:
            segments = tokenizer.segments(texts[i], 4096, None if limit == UNLIMITED else limit)
            rows[i] = np.concatenate([np.array(ids, dtype=np.int32) for ids, _ in segments])
        return rows

    def forward(self, features: dict[str, Any], **kwargs: Any) -> TextFeatures:
        """Adds `sentence_embedding` [B, D], float32; `token_embeddings` (a list of [T, D]) come when asked for.

        Takes what `preprocess` gives, with the padding anywhere, and packed rows (`cu_seq_lens_q`).
        """
        row, lengths = packed(features)
        skip = 0 if self.include_prompt else first_number(features.get("prompt_length", 0))
        bounds = [0, *itertools.accumulate(lengths)]
        embeddings = []
        first = 0
        while first < len(lengths):
            last = first + 1
            while last < len(lengths) and bounds[last + 1] - bounds[first] <= self.budget:
                last += 1
            embeddings.append(self._pooled_row(row, bounds[first : last + 1], skip))
            first = last
        empty = row.new_zeros(0, self.get_embedding_dimension(), dtype=torch.float32)
        pooled = {"sentence_embedding": torch.cat(embeddings) if embeddings else empty}
        return TextFeatures(dict(features) | pooled, lambda: self._token_states(features))

    def _pooled_row(self, ids: torch.Tensor, bounds: list[int], skip: int) -> torch.Tensor:
        """The texts of ids [N] between the bounds -> [texts, D], the first `skip` tokens of each left out."""
        start = bounds[0]
        end = bounds[-1]
        device = self.model.device
        if len(bounds) == 2 and end - start > self.budget and not torch.is_grad_enabled():
            return self._pool(self._id_states(ids[start:end]), min(skip, end - start - 1)).unsqueeze(0)
        ends = torch.tensor(bounds, device=device) - start
        states = self._row_states(ids[start:end], ends).float()
        lengths = ends.diff()
        if self.pooling_mode == "lasttoken":
            return states[ends[1:] - 1]
        text = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths, output_size=end - start)
        if skip:
            # Of a text that is all prompt the closing token remains.
            skipped = (lengths - 1).clamp(max=skip)
            kept = torch.arange(end - start, device=device) >= (ends[:-1] + skipped)[text]
            states = states[kept]
            text = text[kept]
            lengths = lengths - skipped
        pooled = states.new_zeros(len(lengths), states.shape[1])
        if self.pooling_mode == "mean":
            return pooled.index_add(0, text, states) / lengths.unsqueeze(1)
        return pooled.scatter_reduce(0, text.unsqueeze(1).expand_as(states), states, "amax", include_self=False)

    def _row_states(self, ids: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Token states [N, D] of packed texts; ids [N], bounds [texts + 1] from 0."""
        ids = ids.to(self.model.device, torch.long).unsqueeze(0)
        return self.model(input_ids=ids, cu_seq_lens_q=bounds).last_hidden_state[0]

    def _id_states(self, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """Token states [T, D] of one text, ids [N], one segment after the other. Long texts are cut here only."""
        segments = (segment.tolist() for segment in ids.split(self.segment))
        hidden = len(ids) <= self.segment or not _progress_shown()
        with tqdm(total=len(ids), unit="token", unit_scale=True, leave=False, disable=hidden) as bar:
            for states, _ in stream(self.model, segments):
                yield states
                bar.update(len(states))

    def _pool(self, states: Iterable[torch.Tensor], skip: int) -> torch.Tensor:
        pool = RunningPool(str(self.pooling_mode))
        for segment in states:
            pool.add(segment[skip:])
            skip = max(skip - len(segment), 0)
        return pool.result()

    def _token_states(self, features: dict[str, Any]) -> list[torch.Tensor]:
        row, lengths = packed(features)
        return [torch.cat(list(self._id_states(ids))) for ids in row.split(lengths)]

    def save(
        self, output_path: str | os.PathLike[str], *args: Any, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Write model, tokenizer, settings and the code that a stranger needs."""
        self.model.save_pretrained(output_path)
        self.save_tokenizer(os.fspath(output_path))
        (Path(output_path) / CONFIG).write_text(json.dumps(self.get_config_dict(), indent=2) + "\n", encoding="utf-8")
        here = Path(__file__).parent
        for name in (Path(__file__).name, "streaming_lam.py"):
            if (here / name).resolve() != (Path(output_path) / name).resolve():
                shutil.copyfile(here / name, Path(output_path) / name)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str | os.PathLike[str],
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> LAMTransformer:
        """As SentenceTransformer calls it. `model_kwargs` and `processor_kwargs` go to transformers."""
        if backend != "torch":
            raise ValueError(f"LAM runs on the backend 'torch', got {backend!r}.")
        where: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        check_is_lam(model_name_or_path, cache_dir=cache_folder, **where)
        settings = cls.load_config(model_name_or_path, cache_folder=cache_folder, **where)
        where |= {"cache_dir": cache_folder, "trust_remote_code": trust_remote_code}
        changes = {k: v for k, v in (config_kwargs or {}).items() if k not in where}
        model = AutoModel.from_pretrained(model_name_or_path, **(where | changes | (model_kwargs or {})))
        processor_kwargs = dict(processor_kwargs or {})
        length = processor_kwargs.pop("model_max_length", None)
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **(where | processor_kwargs))
        return cls(model, tokenizer, **(settings | ({"max_seq_length": length} if length else {})))


def checked_length(name: str, value: Any, least: int = 3) -> int:
    """Return a number of tokens. Raises ValueError, naming it, unless it is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be None or an integer of at least {least}, got {value!r}.")
    return value


def limit_of_call(processing_kwargs: dict[str, Any] | None, limit: int) -> int:
    """Tokens at which a call truncates, `limit` without the options of the call.

    Raises ValueError for options other than max_length and truncation.
    """
    groups = {name: options for name, options in (processing_kwargs or {}).items() if options}
    options = groups.pop("text", {}) | groups.pop("common", {})
    most = options.pop("max_length", None)
    truncation = options.pop("truncation", None)
    padding = options.pop("padding", True)
    tensors = options.pop("return_tensors", "pt")
    unknown = sorted([*groups, *options])
    unknown += [] if padding in (True, "longest") else [f"padding={padding!r}"]
    unknown += [] if tensors == "pt" else [f"return_tensors={tensors!r}"]
    unknown += [] if truncation is None or truncation in _TRUNCATES else [f"truncation={truncation!r}"]
    if unknown:
        raise ValueError(
            f"LAM does not have these processing_kwargs: {', '.join(unknown)}; it has max_length and truncation (True "
            "or False), under 'text'."
        )
    if truncation is not None and not _TRUNCATES[truncation]:
        return UNLIMITED
    return limit if most is None else checked_length("max_length", most)


def padded(rows: Sequence[Any], pad: int) -> dict[str, torch.Tensor]:
    """Rows of ids -> `input_ids` and `attention_mask` [B, T], padded on the right.

    One long text makes all the padding of a batch: 32 rows, one of them of a million tokens, have 32 million places. A
    batch of more than `WIDE` of them has int32 ids and a mask of bool, 5 bytes for each place instead of 16, and in
    main memory those that hold 0 take nothing (`untouched_zeros`).
    """
    shape = (len(rows), max(map(len, rows), default=0))
    wide = shape[0] * shape[1] > WIDE
    ids = untouched_zeros(shape, np.int32) if wide else np.zeros(shape, np.int64)
    mask = untouched_zeros(shape, np.bool_) if wide else np.zeros(shape, np.int64)
    if pad:
        ids[:] = pad
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def untouched_zeros(shape: tuple[int, int], dtype: Any) -> np.ndarray[Any, Any]:
    """Zeros as of numpy, that take memory only where something is written to them later, in pages of 4 KB."""
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype)
    # Huge pages, which many systems would give, hold 2 MB: the beginnings of the rows would touch nearly all of them.
    memory = mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


def packed(features: dict[str, Any]) -> tuple[torch.Tensor, list[int]]:
    """The real ids [N] of a batch, its texts concatenated, and the number of them in each text.

    Raises ValueError for a mask of another shape and for texts without a token.
    """
    ids = features.get("input_ids")
    mask = features.get("attention_mask")
    bounds = features.get("cu_seq_lens_q")
    if ids is None:  # an empty batch
        return torch.zeros(0, dtype=torch.long), []
    if bounds is not None:
        row = ids.flatten()
        lengths = bounds.diff().tolist()
    elif mask is None:
        row = ids.flatten()
        lengths = [ids.shape[1]] * len(ids)
    elif mask.shape != ids.shape:
        raise ValueError(f"attention_mask must be {list(ids.shape)} as input_ids, got {list(mask.shape)}.")
    elif mask.numel() <= WIDE:
        real = mask.bool()
        lengths = real.sum(1).tolist()
        row = ids.flatten() if sum(lengths) == ids.numel() else ids[real]
    else:
        # Row by row, so that the padding is never in memory.
        rows = [ids[i][mask[i].bool()] for i in range(len(ids))]
        row = torch.cat(rows)
        lengths = [len(x) for x in rows]
    if sum(lengths) != len(row) or (lengths and min(lengths) < 1):
        raise ValueError(
            f"The texts of this batch have {lengths} tokens, {len(row)} ids came; each needs one at least."
        )
    return row, lengths


def first_number(value: Any) -> int:
    """The prompt's length: a number, or a tensor with the same number for each text, as some data loaders make it."""
    return int(value.flatten()[0]) if torch.is_tensor(value) else int(value)


def _progress_shown() -> bool:
    """Whether encode is showing its bar of batches: then one long text shows its own."""
    return any(getattr(bar, "desc", "").startswith("Batches") for bar in list(getattr(tqdm, "_instances", ())))


if not __name__.startswith("transformers_modules."):
    # modules.json names the class by its module. Under this name a folder saved from the installed package finds the
    # file that `save` puts beside the weights; under the package's it would need the package.
    sys.modules.setdefault("sentence_transformers_module", sys.modules[__name__])
    LAMTransformer.__module__ = "sentence_transformers_module"

    def _blank() -> LAMTransformer:
        return LAMTransformer.__new__(LAMTransformer)

    # Another process has to find the class again when it is sent there: by a function whose module is the true one.
    LAMTransformer.__reduce_ex__ = lambda self, protocol: (_blank, (), self.__dict__)  # type: ignore[method-assign]
