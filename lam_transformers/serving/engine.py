"""A SentenceTransformer as the scheduler uses it: ids in, embeddings out, nothing said about requests.

A LAM gets the special treatment: packed rows without padding, and long texts one segment at a time. Every other model
gets padded rows. Both give what `SentenceTransformer.encode` gives.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..model.streaming_lam import RunningPool, TextTokenizer, check_text, stream
from .errors import InvalidInput, TooLarge
from .scheduler import Reader, Tokens

NO_LIMIT = 10**8  # a max_seq_length from here on means that the model truncates nothing
SEGMENT_OF_IDS = 4096  # ids that the tokenizer hands over at once


class TextReader:
    """What becomes of a text before it is admitted: ids, whole or truncated.

    Every method may be called from several threads at once.

    Args:
        model: a SentenceTransformer.
        most: tokens that a text may have, special ones included; None: any number.
    """

    def __init__(self, model, most: int | None):
        # A copy: the model's own tokenizer is told to pad and truncate while ours is in use.
        self._tokenizer = TextTokenizer(copy.deepcopy(model.tokenizer))
        self.backend = self._tokenizer.backend
        self.opening: list[int] = list(self._tokenizer.opening)
        self.closing: list[int] = list(self._tokenizer.closing)
        words = model.transformers_model.get_input_embeddings().num_embeddings
        self.vocabulary: int = min(words, self.backend.get_vocab_size(with_added_tokens=True))
        self.most = most
        # The first call switches padding and truncation off; no later one changes the tokenizer.
        self._tokenizer.encode(["a"])
        include_prompt = [getattr(module, "include_prompt", True) for module in model]
        self._skips_prompt = not all(include_prompt)

    def read(
        self,
        text: str,
        prompt: str = "",
        truncate: bool = False,
        from_left: bool = False,
        most: int | None = None,
        param: str = "input",
    ) -> Tokens:
        """The ids of a text.

        Args:
            text: the text.
            prompt: put before it.
            truncate: cut a text that is too long; otherwise it is refused.
            from_left: cut at the beginning of the text rather than at its end.
            most: a lower limit than the model's own.
            param: what a refusal calls the text.

        Raises:
            InvalidInput: for a text that is longer than the model reads or that is no Unicode text.
            TooLarge: for a text of more than `most` tokens.
        """
        limit = min(most or NO_LIMIT, self.most or NO_LIMIT)
        try:
            check_text(text)
            # One token above the limit is enough to know that the text is too long.
            whole = truncate and from_left
            pieces = self._tokenizer.segments(prompt + text, SEGMENT_OF_IDS, None if whole else limit + 1)
            ids = np.concatenate([np.array(piece, dtype=np.int32) for piece, _ in pieces])
        except ValueError as error:
            # The message of the error quotes the text; an answer must not.
            raise InvalidInput(_without_text(error), param) from None
        skip = len(self._tokenizer.encode([prompt])[0]) - len(self.closing) if prompt and self._skips_prompt else 0
        if len(ids) <= limit:
            return Tokens(ids, skip)
        if not truncate and limit != self.most:
            raise TooLarge(
                f"A text of {param} has more than {limit:,} tokens, which is all this server takes in one request; "
                "send a shorter one.",
                param,
            )
        if not truncate:
            raise InvalidInput(
                f"A text of {param} has more than {limit:,} tokens, which is all that the model reads of a text; send "
                "a shorter one, or ask for it to be truncated.",
                param,
            )
        return Tokens(self._truncated(ids, limit, from_left), skip, truncated=True)

    def take(self, ids: Sequence[int], param: str = "input") -> Tokens:
        """The tokens of a text whose ids a client made; special tokens are put around them unless they are there.

        Raises:
            InvalidInput: for no ids at all, ids that the model does not have, and too many of them.
        """
        if not ids:
            raise InvalidInput(f"A list of token ids in {param} is empty; send one at least.", param)
        self._check_ids(ids, param)
        whole = list(ids)
        if self.opening and whole[: len(self.opening)] != self.opening:
            whole = self.opening + whole
        if self.closing and whole[-len(self.closing) :] != self.closing:
            whole = whole + self.closing
        if self.most is not None and len(whole) > self.most:
            raise InvalidInput(f"{param} has {len(whole):,} token ids, the model reads {self.most:,}.", param)
        return Tokens(np.array(whole, dtype=np.int32))

    def tokens(self, texts: Sequence[str], special: bool = True) -> list[list[dict[str, Any]]]:
        """For each text its tokens, as TEI's /tokenize shows them; start and stop are the characters of a token."""
        rows = []
        for text, encoding in zip(texts, self.backend.encode_batch(texts, add_special_tokens=special), strict=True):
            row = []
            places = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
            for token_id, token, (start, stop), is_special in places:
                added = bool(is_special)
                row.append(
                    {
                        "id": token_id,
                        "text": token if added else text[start:stop],
                        "special": added,
                        "start": None if added else start,
                        "stop": None if added else stop,
                    }
                )
            rows.append(row)
        return rows

    def decode(self, rows: Sequence[Sequence[int]], skip_special: bool = True) -> list[str]:
        """The texts of token ids.

        Raises InvalidInput for ids that the model does not have.
        """
        for row in rows:
            self._check_ids(row, "ids")
        return self.backend.decode_batch([list(row) for row in rows], skip_special_tokens=skip_special)

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        wrong = next((x for x in ids if not 0 <= x < self.vocabulary), None)
        if wrong is not None:
            raise InvalidInput(
                f"{param} has a token id outside 0 to {self.vocabulary - 1}, which are those of this model. Ids of "
                "another model's tokenizer mean other words here: send the text itself, or ids from /tokenize.",
                param,
            )

    def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return sum(len(self._tokenizer.piece(text[start:end])) for start, end in self._tokenizer.pieces(text))

    def _truncated(self, ids: np.ndarray, limit: int, from_left: bool) -> np.ndarray:
        if from_left:
            return np.concatenate([ids[: len(self.opening)], ids[len(ids) - limit + len(self.opening) :]])
        closing = np.array(self.closing, dtype=np.int32)
        return np.concatenate([ids[: limit - len(closing)], closing])


def _without_text(error: ValueError) -> str:
    if "surrogate" in str(error):
        return "A text holds a lone surrogate, which is no Unicode character; decode it with errors='replace'."
    return "A text holds more than a million characters without a space or any other place to cut it."


class _Engine:
    """What both engines share.

    Attributes:
        model: the SentenceTransformer.
        budget: tokens of a row.
        segment: tokens of a long text that are read at once; None where a text is always read as a whole.
    """

    is_lam = False

    def __init__(self, model, budget: int, segment: int | None):
        self.model = model.eval()
        self.budget = budget
        self.segment = segment

    def is_long(self, tokens: Tokens) -> bool:
        return False

    def fits(self, row: Sequence[Tokens], tokens: Tokens) -> bool:
        raise NotImplementedError

    def run_row(self, row: Sequence[Tokens]) -> np.ndarray:
        raise NotImplementedError

    def reader(self, tokens: Tokens) -> Reader:
        raise NotImplementedError("This model reads a text as a whole.")

    def encode_all(self, texts: Sequence[Tokens]) -> np.ndarray:
        """[texts, D] float32: any number of texts, without a scheduler."""
        results: list[np.ndarray | None] = [None] * len(texts)
        row: list[int] = []

        def finish_row() -> None:
            for place, embedding in zip(row, self.run_row([texts[place] for place in row]), strict=True):
                results[place] = embedding
            row.clear()

        for i, tokens in enumerate(texts):
            if self.is_long(tokens):
                reader = self.reader(tokens)
                while results[i] is None:
                    reader.step()
                    results[i] = reader.result()
                continue
            if row and not self.fits([texts[place] for place in row], tokens):
                finish_row()
            row.append(i)
        if row:
            finish_row()
        return np.stack([embedding for embedding in results if embedding is not None])


class LAMEngine(_Engine):
    """A LAM folder's SentenceTransformer: rows are packed without padding, long texts are read in segments."""

    is_lam = True

    def __init__(self, model):
        super().__init__(model, model[0].budget, model[0].segment)

    def is_long(self, tokens: Tokens) -> bool:
        # `encode` reads a text in segments from the budget on. From one segment on is enough for nobody to wait longer.
        return len(tokens) > (self.segment or self.budget)

    def fits(self, row: Sequence[Tokens], tokens: Tokens) -> bool:
        same_prompt = row[0].prompt_length == tokens.prompt_length
        return same_prompt and sum(map(len, row)) + len(tokens) <= self.budget

    @torch.inference_mode()
    def run_row(self, row: Sequence[Tokens]) -> np.ndarray:
        ids = np.concatenate([tokens.ids for tokens in row]).astype(np.int64)
        bounds = np.cumsum([0, *map(len, row)])
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids).unsqueeze(0),  # [1, N]
            "cu_seq_lens_q": torch.from_numpy(bounds),  # [texts + 1]
        }
        if row[0].prompt_length:
            features["prompt_length"] = row[0].prompt_length
        return self.model(features)["sentence_embedding"].float().cpu().numpy()

    @torch.inference_mode()
    def token_states(self, row: Sequence[Tokens]) -> list[np.ndarray]:
        """[T, D] float32 of each text: the states of its tokens before pooling."""
        bounds = torch.from_numpy(np.cumsum([0, *map(len, row)]))
        ids = torch.from_numpy(np.concatenate([tokens.ids for tokens in row]).astype(np.int64)).unsqueeze(0)
        out = self.model.transformers_model(
            input_ids=ids.to(self.model.device), cu_seq_lens_q=bounds.to(self.model.device)
        )
        return [states.float().cpu().numpy() for states in out.last_hidden_state[0].split(bounds.diff().tolist())]

    def reader(self, tokens: Tokens) -> Reader:
        return _LAMReader(self.model, tokens, self.segment or self.budget)


class _LAMReader:
    """One long text, its `LAMState` and what was pooled so far."""

    def __init__(self, model, tokens: Tokens, segment: int):
        self._model = model
        self._lam = model.transformers_model
        self._ids = tokens.ids
        self._skip = min(tokens.prompt_length, len(tokens) - 1)
        self._segment = segment
        self._start = 0
        self._state = self._lam.new_state(1)
        self._pool = RunningPool(str(model[0].pooling_mode))

    @torch.inference_mode()
    def step(self) -> int:
        piece = self._ids[self._start : self._start + self._segment].tolist()
        for states, state in stream(self._lam, [piece], self._state):
            self._state = state
            self._pool.add(states[self._skip :])
            self._skip = max(self._skip - len(states), 0)
        self._start += len(piece)
        return len(piece)

    @torch.inference_mode()
    def result(self) -> np.ndarray | None:
        if self._start < len(self._ids):
            return None
        features: dict[str, Any] = {"sentence_embedding": self._pool.result().unsqueeze(0)}  # [1, D]
        for module in list(self._model)[1:]:
            features = module(features)
        return features["sentence_embedding"][0].float().cpu().numpy()


class PaddedEngine(_Engine):
    """Any other SentenceTransformer with a fast tokenizer of transformers: rows are padded to their longest text."""

    def __init__(self, model, budget: int = 8192):
        super().__init__(model, budget, None)
        self._pad = copy.deepcopy(model.tokenizer).pad

    def fits(self, row: Sequence[Tokens], tokens: Tokens) -> bool:
        longest = max(max(map(len, row)), len(tokens))
        return row[0].prompt_length == tokens.prompt_length and longest * (len(row) + 1) <= self.budget

    @torch.inference_mode()
    def run_row(self, row: Sequence[Tokens]) -> np.ndarray:
        return self._run(row)["sentence_embedding"].float().cpu().numpy()

    @torch.inference_mode()
    def token_states(self, row: Sequence[Tokens]) -> list[np.ndarray]:
        """[T, D] float32 of each text: the states of its tokens before pooling."""
        states = self._run(row)["token_embeddings"].float().cpu().numpy()
        return [rows[: len(tokens)] for rows, tokens in zip(states, row, strict=True)]

    def _run(self, row: Sequence[Tokens]) -> dict[str, Any]:
        ids = [tokens.ids.tolist() for tokens in row]
        features = dict(self._pad({"input_ids": ids}, padding=True, padding_side="right", return_tensors="pt"))
        if row[0].prompt_length:
            features["prompt_length"] = row[0].prompt_length
        features = {name: x.to(self.model.device) if torch.is_tensor(x) else x for name, x in features.items()}
        return self.model(features)


def make_engine(model) -> LAMEngine | PaddedEngine:
    """The engine that fits a SentenceTransformer.

    Raises ValueError for a model whose tokenizer gives no ids of its own, such as one of images or static embeddings.
    """
    if all(hasattr(model[0], name) for name in ("text_tokenizer", "budget", "segment", "pooling_mode")):
        return LAMEngine(model)
    if getattr(model.tokenizer, "backend_tokenizer", None) is None or not hasattr(model.tokenizer, "pad"):
        raise ValueError(
            "lam serve needs a model with a fast tokenizer of transformers, this one has "
            f"{type(model.tokenizer).__name__}."
        )
    return PaddedEngine(model)


def longest_text(model) -> int | None:
    """Tokens that the model reads of a text; None where it reads any number."""
    length = getattr(model, "max_seq_length", None)
    return None if length is None or length >= NO_LIMIT else int(length)
