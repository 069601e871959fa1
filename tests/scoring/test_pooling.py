"""Mean-pooled embeddings."""

import numpy as np
import pytest
import torch

from lam_transformers.scoring.pooling import embed_texts, mean_pool, packed_mean_pool

from ..helpers import assert_close_rms, hidden

TEXTS = [
    "the dog runs in the street",
    "a",
    "the old man plays the guitar and the child sings slowly in the red house of the woman",
    "cat sleeps",
    "",
    "the woman reads a book. the man reads a book; water, river 42",
    "cat sleeps",
]


def test_mean_pool_is_the_normalised_mean_over_real_tokens():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0]])
    got = mean_pool(x, mask)
    for row in range(2):
        mean = x[row, mask[row] == 1].mean(0)
        assert_close_rms(f"row {row}", got[row], mean / mean.norm(), 1e-6)
    assert_close_rms("without a mask", mean_pool(x), mean_pool(x, torch.ones(2, 5)), 1e-6)
    assert mean_pool(x.bfloat16(), mask).dtype == torch.float32


def test_embeddings_keep_the_order_of_the_texts(tiny_model, tokenizer):
    got = embed_texts(tiny_model, tokenizer, TEXTS)
    assert got.shape == (len(TEXTS), 64)
    assert got.dtype == np.float32
    for text, row in zip(TEXTS, got, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        alone = mean_pool(hidden(tiny_model, ids))[0]
        assert_close_rms(f"{text!r}", torch.from_numpy(row), alone, 1e-5)
    assert np.linalg.norm(got, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


@pytest.mark.parametrize("tokens", [1, 20, 50, 10**6])
def test_embeddings_do_not_depend_on_the_batches(tiny_model, tokenizer, tokens):
    want = torch.from_numpy(embed_texts(tiny_model, tokenizer, TEXTS))
    done = []
    got = embed_texts(tiny_model, tokenizer, TEXTS, tokens_per_batch=tokens, progress=done.append)
    assert_close_rms("embeddings", torch.from_numpy(got), want, 1e-5)
    assert sum(done) == len(TEXTS)
    order = [3, 6, 0, 5, 2, 1, 4]
    moved = embed_texts(tiny_model, tokenizer, [TEXTS[i] for i in order], tokens_per_batch=tokens)
    assert_close_rms("permuted embeddings", torch.from_numpy(moved), want[order], 1e-5)


def test_max_length_cuts_texts_and_nothing_cuts_them_without_it(tiny_model, tokenizer):
    long = " ".join(["the dog runs"] * 40)
    ids = torch.tensor([tokenizer(long)["input_ids"]])
    assert ids.shape[1] == 122
    whole = torch.from_numpy(embed_texts(tiny_model, tokenizer, [long]))
    assert_close_rms("whole text", whole, mean_pool(hidden(tiny_model, ids)), 1e-5)
    cut = torch.from_numpy(embed_texts(tiny_model, tokenizer, [long], max_length=8))
    ids = torch.tensor([tokenizer(long, truncation=True, max_length=8)["input_ids"]])
    assert_close_rms("cut text", cut, mean_pool(hidden(tiny_model, ids)), 1e-5)


def test_no_texts_have_no_embeddings(tiny_model, tokenizer):
    assert embed_texts(tiny_model, tokenizer, []).shape == (0, 64)


def test_a_packed_row_is_pooled_text_by_text():
    x = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(1))
    got = packed_mean_pool(x, torch.tensor([0, 2, 3, 9]))
    for i, (start, end) in enumerate([(0, 2), (2, 3), (3, 9)]):
        assert_close_rms(f"text {i}", got[i : i + 1], mean_pool(x[:, start:end]), 1e-6)
    assert packed_mean_pool(x.bfloat16(), torch.tensor([0, 9])).dtype == torch.float32
