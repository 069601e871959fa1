# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""LAM as the first module of a SentenceTransformer: no padding, texts of any length, bounded memory.

A batch is one row of texts behind each other, run in rows of at most `token_budget` tokens. A longer text is tokenised
piece by piece while it is read, in segments with carried state, and pooled as it goes.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from .checks_lam import check_is_lam
from .packing_lam import segment_size
from .streaming_lam import RunningPool, TextTokenizer, ahead, check_text, stream

POOLING = ("mean", "max", "lasttoken")
CONFIG = "sentence_lam_config.json"


class TextFeatures(dict):
    """A batch's features; states of the tokens are computed only for those who ask for them.

    accelerate makes a second one of the items alone when it turns bf16 to float32 in training: that has no such states.
    """

    def __init__(self, features, token_states=None):
        super().__init__(features)
        self._token_states = token_states

    def __missing__(self, key):
        if key not in ("token_embeddings", "attention_mask") or self._token_states is None:
            raise KeyError(key)
        states = self._token_states()
        self["token_embeddings"] = states  # list of [T, D], one a text
        self["attention_mask"] = [torch.ones(len(x), dtype=torch.long) for x in states]
        return self[key]


class LAMTransformer(InputModule):
    """Texts in, pooled embeddings out.

    Args:
        model: a `LAMModel`.
        tokenizer: its fast tokenizer.
        max_seq_length: tokens, special ones included, at which texts are truncated; None: never.
        pooling_mode: "mean", "max" or "lasttoken".
        token_budget: tokens that go through the model at once; None: 2,048 on a CPU, 65,536 elsewhere.
    """

    config_file_name = CONFIG
    config_keys = ["max_seq_length", "pooling_mode", "token_budget"]

    def __init__(self, model, tokenizer, max_seq_length=None, pooling_mode="mean", token_budget=None):
        super().__init__()
        if pooling_mode not in POOLING:
            raise ValueError(f"pooling_mode must be one of {', '.join(POOLING)}, got {pooling_mode!r}.")
        self.model, self.pooling_mode = model, pooling_mode
        self.tokenizer = tokenizer
        self.max_seq_length, self.token_budget = max_seq_length, token_budget

    def __setattr__(self, name, value):
        # SentenceTransformer sets these from outside: say at once what does not fit.
        if name == "tokenizer":
            self.text_tokenizer = TextTokenizer(value)
        least = {"max_seq_length": 3, "token_budget": 1}.get(name)
        if least is not None and value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name} must be None or an integer of at least {least}, got {value!r}.")
        super().__setattr__(name, value)

    def get_embedding_dimension(self) -> int:
        return self.model.config.hidden_size

    @property
    def budget(self) -> int:
        """Tokens that go through the model at once."""
        return self.token_budget or (2048 if self.model.device.type == "cpu" else 65_536)

    @property
    def segment(self) -> int:
        """Tokens of a long text that are read at once."""
        return min(self.budget, segment_size(self.model.device))

    def preprocess(self, inputs, prompt=None, **kwargs):
        """Texts -> `input_ids` [1, N] and the bounds of the texts in that row, `cu_seq_lens_q` [texts + 1].

        Unless training, a long text stays text, under `streamed` (place in the batch -> text), with no tokens here.

        Raises ValueError for whatever is not a string.
        """
        texts = [(prompt or "") + check_text(text) for text in inputs]
        lazily = not self.training and self.text_tokenizer.can_cut
        streamed = {i: text for i, text in enumerate(texts) if lazily and len(text) > 4 * self.budget}
        ids = self.text_tokenizer.encode(["" if i in streamed else text for i, text in enumerate(texts)])
        rows = [[] if i in streamed else self._truncated(row) for i, row in enumerate(ids)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        row = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if rows else np.zeros(0, np.int64)
        bounds = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        features = {"input_ids": torch.from_numpy(row).unsqueeze(0), "cu_seq_lens_q": torch.from_numpy(bounds)}
        return features | ({"streamed": streamed} if streamed else {})

    def _truncated(self, ids):
        if self.max_seq_length is None or len(ids) <= self.max_seq_length:
            return ids
        closing = self.text_tokenizer.closing
        return ids[: self.max_seq_length - len(closing)] + closing

    def forward(self, features, **kwargs):
        """Adds `sentence_embedding` [texts, D], float32; `token_embeddings` (a list of [T, D]) come when asked for."""
        bounds = features["cu_seq_lens_q"].tolist()
        streamed = features.get("streamed", {})
        parts, first = [], 0
        while first < len(bounds) - 1:
            if first in streamed:
                parts.append(self._pool(self._text_states(streamed[first])).unsqueeze(0))
                first += 1
                continue
            last = first + 1
            while last < len(bounds) - 1 and last not in streamed and bounds[last + 1] - bounds[first] <= self.budget:
                last += 1
            parts.append(self._pooled_row(features["input_ids"], bounds[first : last + 1]))
            first = last
        empty = features["input_ids"].new_zeros(0, self.get_embedding_dimension(), dtype=torch.float32)
        embeddings = torch.cat(parts) if parts else empty
        return TextFeatures(features | {"sentence_embedding": embeddings}, lambda: self._token_states(features))

    def _pooled_row(self, ids, bounds):
        """One packed row -> [texts, D]."""
        start, end, device = bounds[0], bounds[-1], self.model.device
        if len(bounds) == 2 and end - start > self.budget and not torch.is_grad_enabled():
            return self._pool(self._id_states(ids[0, start:end])).unsqueeze(0)
        states = self._row_states(ids[:, start:end], bounds).float()
        lengths = torch.tensor(bounds, device=device).diff()
        if self.pooling_mode == "lasttoken":
            return states[torch.tensor(bounds[1:], device=device) - start - 1]
        text = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths, output_size=end - start)
        pooled = states.new_zeros(len(lengths), states.shape[1])
        if self.pooling_mode == "mean":
            return pooled.index_add(0, text, states) / lengths.unsqueeze(1)
        return pooled.scatter_reduce(0, text.unsqueeze(1).expand_as(states), states, "amax", include_self=False)

    def _row_states(self, ids, bounds):
        bounds = torch.tensor(bounds, device=self.model.device) - bounds[0]
        return self.model(input_ids=ids.to(self.model.device), cu_seq_lens_q=bounds).last_hidden_state[0]

    def _id_states(self, ids):
        """Token states [T, D] of a tokenised text, one segment after the other."""
        segments = (piece.tolist() for piece in ids.split(self.segment))
        return (states for states, _ in stream(self.model, segments))

    def _text_states(self, text):
        """Token states [T, D] of a text that is tokenised on the way, one segment after the other."""
        segments = ahead(self.text_tokenizer.segments(text, self.segment, self.max_seq_length))
        with tqdm(total=len(text), unit="char", unit_scale=True, leave=False, disable=not _progress_shown()) as bar:

            def watched():
                for ids, done in segments:
                    yield ids
                    bar.update(done - bar.n)

            for states, _ in stream(self.model, watched()):
                yield states

    def _pool(self, states):
        pool = RunningPool(self.pooling_mode)
        for piece in states:
            pool.add(piece)
        return pool.result()

    def _token_states(self, features):
        bounds, streamed = features["cu_seq_lens_q"].tolist(), features.get("streamed", {})
        states = []
        for i, (start, end) in enumerate(itertools.pairwise(bounds)):
            ids = features["input_ids"][0, start:end]
            pieces = self._text_states(streamed[i]) if i in streamed else self._id_states(ids)
            states.append(torch.cat(list(pieces)))
        return states

    def save(self, output_path, *args, safe_serialization=True, **kwargs):
        """Write model, tokenizer, settings and the code that a stranger needs."""
        self.model.save_pretrained(output_path)
        self.save_tokenizer(output_path)
        (Path(output_path) / CONFIG).write_text(json.dumps(self.get_config_dict(), indent=2) + "\n", encoding="utf-8")
        here = Path(__file__).parent
        for name in (Path(__file__).name, "streaming_lam.py"):
            if (here / name).resolve() != (Path(output_path) / name).resolve():
                shutil.copyfile(here / name, Path(output_path) / name)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path,
        subfolder="",
        token=None,
        cache_folder=None,
        revision=None,
        local_files_only=False,
        trust_remote_code=False,
        model_kwargs=None,
        processor_kwargs=None,
        config_kwargs=None,
        backend="torch",
        **kwargs,
    ):
        """As SentenceTransformer calls it. `model_kwargs` and `processor_kwargs` go to transformers."""
        if backend != "torch":
            raise ValueError(f"LAM runs on the backend 'torch', got {backend!r}.")
        where = {"subfolder": subfolder, "token": token, "revision": revision, "local_files_only": local_files_only}
        check_is_lam(model_name_or_path, cache_dir=cache_folder, **where)
        settings = cls.load_config(model_name_or_path, cache_folder=cache_folder, **where)
        where |= {"cache_dir": cache_folder, "trust_remote_code": trust_remote_code}
        changes = {k: v for k, v in (config_kwargs or {}).items() if k not in where}
        model = AutoModel.from_pretrained(model_name_or_path, **(where | changes | (model_kwargs or {})))
        processor_kwargs = dict(processor_kwargs or {})
        length = processor_kwargs.pop("model_max_length", None)
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **(where | processor_kwargs))
        return cls(model, tokenizer, **(settings | ({"max_seq_length": length} if length else {})))


def _progress_shown() -> bool:
    """Whether encode is showing its bar of batches: then one long text shows its own."""
    return any(getattr(bar, "desc", "").startswith("Batches") for bar in list(getattr(tqdm, "_instances", ())))


if not __name__.startswith("transformers_modules."):
    # modules.json names the class by its module. Under this name a folder saved from the installed package finds the
    # file that `save` puts beside the weights; under the package's it would need the package.
    sys.modules.setdefault("sentence_transformers_module", sys.modules[__name__])
    LAMTransformer.__module__ = "sentence_transformers_module"

    def _blank():
        return LAMTransformer.__new__(LAMTransformer)

    # Another process has to find the class again when it is sent there: by a function whose module is the true one.
    LAMTransformer.__reduce_ex__ = lambda self, protocol: (_blank, (), self.__dict__)  # type: ignore[method-assign]
