"""Texts tokenised in pieces have the ids of one go; running pools are the pools of everything."""

import re

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput

from lam_transformers.model import streaming_lam
from lam_transformers.model.streaming_lam import RunningPool, TextTokenizer, check_text, stream

from ..helpers import assert_close_rms, hidden, random_ids

ALPHABET = (
    "ab zA.[],!-\t\n\r\x00\x0b\x0c\x1c\x85\u00a0\u00ad\u0301\u0338\u200b\u2028\u3000\ufffd\ufeff"
    "\u4e2d\uf900\U00020000\u00e9\uac00\u1100\u1161\u0e33\u3042\u3002\U0001f642\u202e"
)
TEXTS = st.lists(
    st.one_of(
        st.text(ALPHABET, max_size=12),
        st.sampled_from(["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", "[SE", "P]", "the dog", "x" * 120]),
    ),
    max_size=30,
).map("".join)


@pytest.fixture(scope="module")
def text_tokenizer(tokenizer):
    return TextTokenizer(tokenizer)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, size=st.integers(1, 24))
def test_ids_of_pieces_are_those_of_one_go(text_tokenizer, text, size):
    want = text_tokenizer.encode([text])[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming_lam, "PIECE", size)
        bounds = list(text_tokenizer.pieces(text))
        assert "".join(text[a:b] for a, b in bounds) == text
        got = [i for a, b in bounds for i in text_tokenizer.piece(text[a:b])]
        assert [*text_tokenizer.opening, *got, *text_tokenizer.closing] == want
        for segment in (1, 3, 1000):
            pieces = [ids for ids, _ in text_tokenizer.segments(text, segment)]
            assert [i for ids in pieces for i in ids] == want
            assert all(len(ids) == segment for ids in pieces[:-1])


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_every_place_to_cut_is_one(text_tokenizer, text):
    whole = text_tokenizer.piece(text)
    for cut in range(1, len(text)):
        if text_tokenizer.last_cut(text, cut, cut):
            assert text_tokenizer.piece(text[:cut]) + text_tokenizer.piece(text[cut:]) == whole, (cut, text)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, size=st.integers(1, 24))
def test_offsets_of_pieces_are_those_of_one_go(text_tokenizer, text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming_lam, "PIECE", size)
        got = [
            (i, (start + a, start + b))
            for start, end in text_tokenizer.pieces(text)
            for i, (a, b) in zip(*text_tokenizer.piece_with_offsets(text[start:end]), strict=True)
        ]
    assert got == list(zip(*text_tokenizer.piece_with_offsets(text), strict=True))


def test_truncation_keeps_the_closing_token(text_tokenizer):
    text = "the dog runs in the house " * 20
    want = text_tokenizer.encode([text])[0]
    for limit in (3, 4, 17, len(want) - 1, len(want), len(want) + 1):
        got = [i for ids, _ in text_tokenizer.segments(text, 8, limit) for i in ids]
        assert got == (want if limit >= len(want) else want[: limit - 1] + want[-1:])


def test_a_very_long_word_is_one_unknown_token(text_tokenizer):
    assert [ids for ids, _ in text_tokenizer.segments("a" * 10_000_000, 64)] == [text_tokenizer.encode(["a" * 200])[0]]


def test_a_very_long_word_that_cannot_be_shortened_is_refused(text_tokenizer):
    with pytest.raises(ValueError, match="without a space"):
        list(text_tokenizer.segments("\u3042" * 1_000_001, 64))
    with pytest.raises(ValueError, match="without a space"):
        text_tokenizer.piece_with_offsets("a" * 1_000_001)


def test_padding_and_truncation_left_on_by_others_do_not_matter(tokenizer):
    wrapped = TextTokenizer(tokenizer)
    want = wrapped.encode(["the dog", "a"])
    tokenizer(["the dog", "a"], padding="max_length", truncation=True, max_length=3)
    assert wrapped.encode(["the dog", "a"]) == want


def test_another_kind_of_tokenizer_is_not_cut():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    toy = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    toy.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=toy))
    text = "a " * 20_000
    assert not wrapped.can_cut
    assert list(wrapped.pieces(text)) == [(0, len(text))]
    assert [i for ids, _ in wrapped.segments(text, 64) for i in ids] == [0] * 20_000


@pytest.mark.parametrize("bad", [None, b"bytes", 3, ["a"], "lone \ud800 surrogate", "x" * 20_000 + "\udfff"])
def test_what_is_no_text_is_named(bad):
    with pytest.raises(ValueError, match=r"LAM embeds strings|lone surrogate"):
        check_text(bad)


@pytest.mark.parametrize("mode", ["mean", "max", "lasttoken"])
def test_a_running_pool_is_the_pool_of_everything(mode):
    states = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    pool = RunningPool(mode)
    for size in (1, 0, 7, 42):
        pool.add(states[pool.count : pool.count + size])
        copy = pool.clone()
    want = {"mean": states.mean(0), "max": states.amax(0), "lasttoken": states[-1]}[mode]
    copy.add(states)
    assert pool.count == 50
    assert torch.allclose(pool.result(), want, atol=1e-6)


def test_an_empty_pool_says_so():
    with pytest.raises(ValueError, match="nothing to pool"):
        RunningPool("mean").result()


def in_segments(model, ids, size=7, state=None):
    pieces = [ids[start : start + size].tolist() for start in range(0, len(ids), size)]
    with torch.no_grad():
        return torch.cat([states for states, _ in stream(model, pieces, state)])


def test_a_stream_is_one_pass_whatever_becomes_of_the_fields_of_an_output(make_model, monkeypatch):
    """transformers 5.24 renamed an output's item `cache_params`: our field then read None and the memory began anew."""
    model = make_model()
    ids = random_ids(50, vocab_size=model.config.vocab_size)
    want = hidden(model, ids.unsqueeze(0))[0]
    forward = type(model).forward

    def without_a_state(self, *args, **kwargs):
        return BaseModelOutput(forward(self, *args, **kwargs).last_hidden_state)

    for change in (forward, without_a_state):
        monkeypatch.setattr(type(model), "forward", change)
        assert_close_rms("token states", in_segments(model, ids), want, 1e-5)


def test_a_stream_whose_state_is_not_carried_on_is_an_error(make_model, monkeypatch):
    model = make_model()
    ids = random_ids(50, vocab_size=model.config.vocab_size)
    forward = type(model).forward

    def forgetful(self, *args, **kwargs):
        return forward(self, *args, **kwargs | {"cache": None, "cache_params": None, "past_key_values": None})

    monkeypatch.setattr(type(model), "forward", forgetful)
    with pytest.raises(RuntimeError, match=re.escape(f"transformers {transformers.__version__} and torch")):
        in_segments(model, ids)


def test_a_stream_goes_on_from_the_state_that_it_is_given_and_updates_it(tiny_model):
    ids = random_ids(50, vocab_size=tiny_model.config.vocab_size)
    state = tiny_model.new_state(1)
    got = torch.cat([in_segments(tiny_model, ids[:23], 9, state), in_segments(tiny_model, ids[23:], 9, state)])
    assert state.seen.tolist() == [50]
    assert_close_rms("token states", got, hidden(tiny_model, ids.unsqueeze(0))[0], 1e-5)


def test_a_stream_has_its_state_checked_once_a_text(make_model, monkeypatch):
    model = make_model()
    ids = random_ids(50, vocab_size=model.config.vocab_size)
    asked = []
    fingerprint = type(model).fingerprint

    def counted(self):
        asked.append(fingerprint(self))
        return asked[-1]

    monkeypatch.setattr(type(model), "fingerprint", counted)
    in_segments(model, ids)
    assert len(asked) == 1  # by new_state
    state = model.new_state(1)
    asked.clear()
    in_segments(model, ids, state=state)
    assert len(asked) == 1
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.add_(1)
    with pytest.raises(ValueError, match="other weights"):
        in_segments(model, ids, state=state)


def test_a_stream_cut_inside_a_two_way_chunk_is_refused(make_model):
    model = make_model(two_way_chunk=16)
    ids = random_ids(50, vocab_size=model.config.vocab_size)
    with pytest.raises(ValueError, match="goes on from multiples of 16 only"):
        in_segments(model, ids, 7)
    assert_close_rms("token states", in_segments(model, ids, 16), hidden(model, ids.unsqueeze(0))[0], 1e-5)
