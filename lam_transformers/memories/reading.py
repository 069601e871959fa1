"""How the service reads: one text, a conversation that grows, a whole document; each in one pass of the model.

Everything here computes and nothing is stored. A `Reader` may be used from several threads; the model runs in one of
them at a time.
"""

import itertools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from ..encoding.encoder import LAMEncoder
from ..encoding.pipeline import Pipeline
from ..model.state_lam import LAMState
from ..model.streaming_lam import RunningPool, stream
from .paragraphs import paragraphs

SEGMENT = 2048  # tokens that are read at once
PASSAGE = 128  # tokens of a passage; a text of at most so many has none
TURNS = 32  # turns of a conversation that are read at once
STRIDE = 64  # tokens from the start of one passage to that of the next
SHORT = 4_096  # characters; a longer text is taken for one of more than PASSAGE tokens without counting them
STEP = 8  # segments of a document that are read between two places from which reading can go on
_QUERIES = 256  # vectors of queries that are kept


@dataclass(frozen=True)
class Reading:
    """What was computed from a text.

    Attributes:
        alone: [D] float32, the embedding of the text, as `encode` gives it.
        passages: [passages, D] float32, each passage in the light of the text before it; none for a short text.
        spans: [passages, 2] int32, the characters [start, end) of each.
    """

    alone: np.ndarray
    passages: np.ndarray
    spans: np.ndarray


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a document: its characters, and its embedding [D] in the light of the document before it."""

    start: int
    end: int
    vector: np.ndarray


@dataclass(frozen=True)
class DocumentStep:
    """Paragraphs that were read, and where to go on.

    Attributes:
        paragraphs: those that ended since the step before.
        tokens: read so far.
        resume: state to go on from after this step, or None when the document is finished.
        vector: [D] of the whole document, in the last step only.
    """

    paragraphs: list[Paragraph]
    tokens: int
    resume: bytes | None
    vector: np.ndarray | None


class ConversationState:
    """A conversation as one text that grows, read up to some turn.

    The turns are tokenised one by one and read as one text; every turn costs its own tokens, and fewer than
    `two_way_chunk` of those before it, which a model that reads two ways has to see again.

    Attributes:
        turns: number of turns read.
    """

    def __init__(self, turns: int, tail: list[int], state: LAMState | None, pool: RunningPool) -> None:
        self.turns = turns
        self.tail = tail  # tokens after those that `state` has seen
        self.state = state
        self.pool = pool

    def copy(self) -> "ConversationState":
        """A state that goes on independently of this one."""
        state = None if self.state is None else self.state.clone()
        return ConversationState(self.turns, list(self.tail), state, self.pool.clone())

    @property
    def tokens(self) -> int:
        """Number of tokens that the state has seen; the tail comes after them."""
        return 0 if self.state is None else int(self.state.seen[0])

    def head_bytes(self) -> bytes:
        """The part that changes with whole chunks: state and pooled sum (safetensors); the tail is not in it."""
        return _state_bytes(self.state, {"all": self.pool}, {"turns": self.turns, "tail": self.tail})

    @classmethod
    def from_bytes(cls, data: bytes) -> "ConversationState":
        """Raises ValueError for damaged bytes."""
        state, pools, about = _state_from_bytes(data)
        return cls(int(about["turns"]), [int(x) for x in about["tail"]], state, pools["all"])


class Reader:
    """A LAM that reads for a memory; it is loaded when it is first needed.

    Args:
        model: a folder or Hub id, a `LAMEncoder` or a SentenceTransformer of a LAM.
        device: as SentenceTransformer's.
    """

    def __init__(self, model: Any = "LAM-base-v1", device: str | None = None) -> None:
        self.name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
        self._given = model
        self._device = device
        self._loaded: tuple[LAMEncoder, Pipeline] | None = None
        self._fingerprint: str | None = None
        self._lock = threading.RLock()
        self._queries: OrderedDict[str, np.ndarray] = OrderedDict()
        self._queries_lock = threading.Lock()  # not the model's: a question that is known waits for no reading

    def _load(self) -> tuple["LAMEncoder", Pipeline]:
        with self._lock:
            if self._loaded is None:
                model = self._given
                if isinstance(model, (str, os.PathLike)):
                    model = LAMEncoder(model, device=self._device)
                self._loaded = model, Pipeline(model)
            return self._loaded

    @property
    def parts(self) -> Pipeline:
        """The LAM, its tokenizer and how it pools."""
        return self._load()[1]

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return int(self.parts.lam.config.hidden_size)

    @property
    def fingerprint(self) -> str:
        """Identifies the weights, which must not change from here on, and how they are pooled."""
        if self._fingerprint is None:
            self._fingerprint = f"{self.parts.lam.fingerprint()}-{self.parts.pooling}"
        return self._fingerprint

    @property
    def chunk(self) -> int:
        """A state is kept at multiples of this many tokens."""
        return int(getattr(self.parts.lam.config, "two_way_chunk", 0) or 64)

    def query(self, text: str) -> np.ndarray:
        """[D] float32 of length one: the embedding of a question."""
        with self._queries_lock:
            known = self._queries.get(text)
            if known is not None:
                self._queries.move_to_end(text)
                return known
        with self._lock:
            encoder, _ = self._load()
            vector = np.asarray(encoder.encode([text], show_progress_bar=False)[0], np.float32)
        with self._queries_lock:
            self._queries[text] = vector
            while len(self._queries) > _QUERIES:
                self._queries.popitem(last=False)
        return vector

    def forget_queries(self) -> None:
        """Let go of the questions whose vectors were kept."""
        with self._queries_lock:
            self._queries.clear()

    def read(self, texts: list[str], passages: bool = True) -> list[Reading]:
        """Embed texts, each alone; those without passages in batches."""
        readings: list[Reading | None] = [None] * len(texts)
        with self._lock, torch.inference_mode():
            encoder, parts = self._load()
            short = [
                i
                for i, text in enumerate(texts)
                if not passages or (len(text) <= SHORT and len(parts.tokenizer.piece(text)) <= PASSAGE)
            ]
            none = np.zeros((0, self.dimension), np.float32)
            if short:
                vectors = encoder.encode([texts[i] for i in short], show_progress_bar=False)
                for i, vector in zip(short, vectors, strict=True):
                    readings[i] = Reading(np.asarray(vector, np.float32), none, np.zeros((0, 2), np.int32))
            for i in set(range(len(texts))) - set(short):
                readings[i] = self._read_long(parts, texts[i])
        return [reading for reading in readings if reading is not None]

    def _read_long(self, parts: Pipeline, text: str) -> Reading:
        pool = RunningPool(parts.pooling)
        strides: list[RunningPool] = []  # means of STRIDE tokens, of which passages are made
        places: list[tuple[int, int]] = []
        for states, offsets in _token_states(parts, text):
            pool.add(states)
            for row in _runs(offsets, strides, places):
                strides[row[0]].add(states[row[1] : row[2]])
        alone = _array(parts.finish(pool.result()))
        if len(strides) * STRIDE <= PASSAGE:
            return Reading(alone, np.zeros((0, len(alone)), np.float32), np.zeros((0, 2), np.int32))
        width = PASSAGE // STRIDE
        vectors = []
        spans = []
        for start in range(max(len(strides) - width + 1, 1)):
            inside = strides[start : start + width]
            # A passage is the mean of its tokens.
            mean = torch.stack([part.value for part in inside if part.value is not None]).sum(0)
            vectors.append(_array(parts.finish((mean / sum(part.count for part in inside)).float())))
            spans.append((places[start][0], places[min(start + width, len(places)) - 1][1]))
        return Reading(alone, np.stack(vectors), np.array(spans, np.int32))

    # Conversations -------------------------------------------------------------------------------------------------

    def new_conversation(self) -> ConversationState:
        """A conversation in which nothing was said yet."""
        return ConversationState(0, list(self.parts.tokenizer.opening), None, RunningPool("mean"))

    def kept_conversation(self, data: bytes) -> ConversationState:
        """The conversation of `ConversationState.head_bytes`. Raises ValueError for damaged bytes."""
        return ConversationState.from_bytes(data)

    def continues(self, conversation: ConversationState) -> bool:
        """Whether the state of a conversation is this model's."""
        return conversation.state is None or conversation.state.fingerprint == self.parts.lam.fingerprint()

    def add_turn(self, conversation: ConversationState, text: str) -> np.ndarray:
        """Read one more turn; see `add_turns`. Returns its vector [D]."""
        vector: np.ndarray = self.add_turns(conversation, [text])[0]
        return vector

    @torch.inference_mode()
    def add_turns(self, conversation: ConversationState, texts: list[str]) -> np.ndarray:
        """Read more turns; the embedding of the tokens of each in the light of all that was said before it.

        A turn's vector does not depend on the turns after it, whether they are read in the same call or later.

        Args:
            conversation: goes on; after an exception it is as it was.
            texts: of the turns.

        Returns:
            [turns, D] float32.
        """
        with self._lock:
            parts = self.parts
            read = conversation.copy()
            vectors = [np.zeros((0, self.dimension), np.float32)]
            for first in range(0, len(texts), TURNS):
                ids = [
                    [
                        token
                        for start, end in parts.tokenizer.pieces(text)
                        for token in parts.tokenizer.piece(text[start:end])
                    ]
                    for text in texts[first : first + TURNS]
                ]
                vectors.append(self._add_turns(read, ids))
            vars(conversation).update(vars(read))
            return np.concatenate(vectors)

    def _add_turns(self, conversation: ConversationState, turns: list[list[int]]) -> np.ndarray:
        """Some turns, as ids.

        Whole chunks are read one after the other; what is left of each turn after its last whole chunk is read, with
        the closing token, from the state before it: for all turns in one pass, each a text of its own.
        """
        parts = self.parts
        pending = conversation.tail + [token for ids in turns for token in ids]
        bounds = np.cumsum([len(conversation.tail), *map(len, turns)])
        starts = bounds[:-1]
        ends = bounds[1:]
        cuts = ends - ends % self.chunk  # where the chunk begins in which a turn ends
        state = parts.lam.new_state(1) if conversation.state is None else conversation.state
        heads = {0: state.copy()}
        pools = [RunningPool("mean") for _ in turns]

        def segments() -> Iterator[list[int]]:
            place = 0
            for cut in np.unique(cuts):
                yield from _segments(pending[place:cut])
                place = int(cut)

        seen = 0
        for states, _ in stream(parts.lam, segments(), state):
            conversation.pool.add(states)
            after = seen + len(states)
            for turn in np.flatnonzero((starts < after) & (cuts > seen)):
                pools[turn].add(states[max(starts[turn] - seen, 0) : min(cuts[turn], after) - seen])
            if after in cuts:
                heads[after] = state.copy()
            seen = after
        for i, states in _apart(
            parts.lam,
            {
                i: (pending[cuts[i] : ends[i]] + parts.tokenizer.closing, heads[int(cuts[i])])
                for i in range(len(turns))
                if max(starts[i], cuts[i]) < ends[i]
            },
        ):
            pools[i].add(states[max(starts[i] - cuts[i], 0) : ends[i] - cuts[i]])
        for pool in pools:
            if not pool.count:  # a text without a token, such as one of control characters
                pool.add(torch.zeros(1, self.dimension))
        conversation.state = state
        conversation.tail = pending[seen:]
        conversation.turns += len(turns)
        return np.stack([_array(parts.finish(pool.result())) for pool in pools])

    @torch.inference_mode()
    def gist(self, conversation: ConversationState) -> np.ndarray:
        """[D] float32: the embedding of the conversation as one text, its turns joined by blank lines."""
        with self._lock:
            parts = self.parts
            pool = conversation.pool.clone()
            state = parts.lam.new_state(1) if conversation.state is None else conversation.state.clone()
            for states, _ in stream(parts.lam, _segments(conversation.tail + parts.tokenizer.closing), state):
                pool.add(states)
            return _array(parts.finish(pool.result()))

    # Documents -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def read_document(self, text: str, resume: bytes | None = None) -> Iterator[DocumentStep]:
        """Read a document in one pass, a step at a time.

        Args:
            text: of any length.
            resume: of the last step that was kept; the steps after it follow.
        """
        parts = self.parts
        spans = paragraphs(text)
        starts = np.array([start for start, _ in spans], np.int64)
        ends = np.array([end for _, end in spans], np.int64)
        whole = RunningPool(parts.pooling)
        opened: dict[int, RunningPool] = {}
        state = parts.lam.new_state(1)
        tokens = 0
        if resume is not None:
            loaded, pools, about = _state_from_bytes(resume)
            assert loaded is not None
            state = loaded
            tokens = int(about["tokens"])
            whole = pools.pop("whole")
            opened = {int(name): pool for name, pool in pools.items()}
        segments = _document_segments(parts, text)
        finished: list[Paragraph] = []
        steps = 0
        for ids, offsets, last in segments:
            if offsets.shape[0] and ids[1] <= tokens:
                continue  # read before
            with self._lock:
                for states, _ in stream(parts.lam, iter([ids[0]]), state):
                    whole.add(states)
                    real = states[: len(offsets)]
                    place = np.searchsorted(starts, offsets[:, 0], side="right") - 1
                    inside = (place >= 0) & (offsets[:, 1] <= ends[np.maximum(place, 0)]) & (offsets[:, 1] > 0)
                    for number in np.unique(place[inside]):
                        opened.setdefault(int(number), RunningPool("mean")).add(
                            real[torch.from_numpy(inside & (place == number))]
                        )
                    current = int(place[-1]) if len(place) else -1
            tokens = ids[1]
            steps += 1
            for number in sorted(opened):
                if last or number < current:
                    pool = opened.pop(number)
                    finished.append(Paragraph(*spans[number], _array(parts.finish(pool.result()))))
            if last:
                yield DocumentStep(finished, tokens, None, _array(parts.finish(whole.result())))
                return
            if steps % STEP == 0:
                pools = {"whole": whole} | {str(number): pool for number, pool in opened.items()}
                yield DocumentStep(finished, tokens, _state_bytes(state, pools, {"tokens": tokens}), None)
                finished = []


def _array(vector: torch.Tensor) -> np.ndarray:
    return vector.detach().float().cpu().numpy()


def _apart(lam: Any, texts: dict[int, tuple[list[int], LAMState]]) -> Iterator[tuple[int, torch.Tensor]]:
    """Token states [T, D] of texts, by number, each of which goes on from a state of its own; in one pass."""
    if not texts:
        return
    states = [state for _, state in texts.values()]
    before = LAMState(
        [torch.cat(layer) for layer in zip(*(state.memory for state in states), strict=True)],
        [torch.cat(layer) for layer in zip(*(state.conv for state in states), strict=True)],
        torch.cat([state.seen for state in states]),
        states[0].fingerprint,
    )
    lengths = [len(ids) for ids, _ in texts.values()]
    device = before.seen.device
    row = torch.tensor([[token for ids, _ in texts.values() for token in ids]], device=device)
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], device=device)
    out = lam(input_ids=row, cu_seq_lens_q=bounds, cache=before)
    yield from zip(texts, out.last_hidden_state[0].split(lengths), strict=True)


def _segments(ids: list[int]) -> Iterator[list[int]]:
    return (ids[start : start + SEGMENT] for start in range(0, len(ids), SEGMENT))


def _document_segments(parts: Pipeline, text: str) -> Iterator[tuple[tuple[list[int], int], np.ndarray, bool]]:
    """Segments of a text: (ids, tokens up to their end), characters [tokens, 2] of the ids, whether it is the last.

    Special tokens have the characters (0, 0); the closing one has no row.
    """
    tokenizer = parts.tokenizer
    ids = list(tokenizer.opening)
    places = [(0, 0)] * len(ids)
    count = 0
    for start, end in tokenizer.pieces(text):
        new, offsets = tokenizer.piece_with_offsets(text[start:end])
        ids += new
        places += [(start + a, start + b) for a, b in offsets]
        while len(ids) > SEGMENT:
            count += SEGMENT
            yield (ids[:SEGMENT], count), np.array(places[:SEGMENT], np.int64).reshape(-1, 2), False
            ids = ids[SEGMENT:]
            places = places[SEGMENT:]
    closed = ids + tokenizer.closing
    yield (closed, count + len(closed)), np.array(places, np.int64).reshape(-1, 2), True


def _token_states(parts: Pipeline, text: str) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Token states [T, D] of a text, special tokens included, and the characters of each ((0, 0) for special ones)."""
    waiting: list[np.ndarray] = []

    def segments() -> Iterator[list[int]]:
        for (ids, _), places, _ in _document_segments(parts, text):
            padding = np.zeros((len(ids) - len(places), 2), np.int64)
            waiting.append(np.concatenate([places, padding]))
            yield ids

    for states, _ in stream(parts.lam, segments()):
        yield states, waiting.pop(0)


def _runs(
    offsets: np.ndarray, strides: list[RunningPool], places: list[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """(stride, first row, last row) of tokens that go into the same stride; strides and places are made as needed."""
    rows = np.flatnonzero(offsets[:, 1] > 0)
    at = 0
    while at < len(rows):
        if not strides or strides[-1].count >= STRIDE:
            strides.append(RunningPool("mean"))
            places.append((int(offsets[rows[at], 0]), int(offsets[rows[at], 1])))
        last = min(at + STRIDE - strides[-1].count, len(rows))
        places[-1] = (places[-1][0], int(offsets[rows[last - 1], 1]))
        # Rows of real tokens are next to each other: only the ends of a text are special.
        yield len(strides) - 1, int(rows[at]), int(rows[last - 1]) + 1
        at = last


def _state_bytes(state: LAMState | None, pools: dict[str, RunningPool], about: dict[str, Any]) -> bytes:
    tensors: dict[str, torch.Tensor] = {}
    if state is not None:
        tensors["memory"] = torch.stack(state.memory).contiguous().cpu()
        tensors["conv"] = torch.stack(state.conv).contiguous().cpu()
        tensors["seen"] = state.seen.cpu()
        about = about | {"fingerprint": state.fingerprint}
    counts = {}
    for name, pool in pools.items():
        counts[name] = [pool.mode, pool.count]
        if pool.value is not None:
            tensors[f"pool.{name}"] = pool.value.cpu()
    return tensors_to_bytes(tensors, {"lam_memory": json.dumps(about | {"pools": counts})})


def _state_from_bytes(data: bytes) -> tuple[LAMState | None, dict[str, RunningPool], dict[str, Any]]:
    """Raises ValueError for bytes that `_state_bytes` did not write."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["lam_memory"])
        tensors = tensors_from_bytes(data)
        pools = {}
        for name, (mode, count) in about["pools"].items():
            pool = RunningPool(mode)
            pool.count = count
            pool.value = tensors.get(f"pool.{name}")
            pools[name] = pool
        state = None
        if "memory" in tensors:
            state = LAMState(tensors["memory"], tensors["conv"], tensors["seen"], about["fingerprint"])
    except Exception as error:  # many readers stumble over damaged bytes, each in its own way
        raise ValueError(f"The stored state is damaged: {error!r}.") from error
    return state, pools, about
