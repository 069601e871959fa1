"""LAMTransformer inside SentenceTransformer: every option of encode, any batch, any length, saved and loaded again."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from lam_transformers.checkpoints.export import SHIPPED_CODE, export_model
from lam_transformers.model import sentence_transformers_module as module
from lam_transformers.model.sentence_transformers_module import LAMTransformer

WORDS = "the dog plays in house and reads a book quickly old river water red [SEP] , .".split()  # noqa: SIM905


def make_texts(count, longest, seed=0):
    g = np.random.default_rng(seed)
    return [" ".join(g.choice(WORDS, size=g.integers(0, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def folders(tiny_model, tokenizer, tmp_path_factory):
    """The same tiny weights with our own modules and with stock ones."""
    root = tmp_path_factory.mktemp("exported")
    tiny_model.save_pretrained(root / "source")
    tokenizer.save_pretrained(root / "source")
    export_model(root / "source", root / "own", torch.float32)
    export_model(root / "source", root / "stock", torch.float32, stock=True)
    return root


@pytest.fixture
def encoder(folders):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folders / "own"), trust_remote_code=True)


@pytest.fixture(scope="module")
def stock(folders):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folders / "stock"))


def close(a, b, bound=1e-6):
    return np.abs(np.asarray(a) - np.asarray(b)).max() <= bound


def test_it_is_our_module_and_it_agrees_with_the_stock_ones(encoder, stock):
    texts = make_texts(40, 60)
    assert type(encoder[0]).__name__ == "LAMTransformer"
    assert type(stock[0]).__name__ == "Transformer"
    assert close(encoder.encode(texts), stock.encode(texts))
    assert encoder.get_embedding_dimension() == stock.get_embedding_dimension() == 64
    assert encoder.encode([]).shape == (0,)


def test_batch_order_and_token_budget_do_not_matter(encoder):
    texts = [*make_texts(14, 60), "", "dog"]
    alone = np.stack([encoder.encode(text) for text in texts])
    order = np.random.default_rng(1).permutation(len(texts))
    for budget in (16, 100, None):
        encoder[0].token_budget = budget
        for batch_size in (3, 64):
            assert close(encoder.encode(texts, batch_size=batch_size), alone), (budget, batch_size)
            shuffled = encoder.encode([texts[i] for i in order], batch_size=batch_size)
            assert close(shuffled, alone[order]), (budget, batch_size)


@pytest.mark.parametrize("pooling", ["mean", "max", "lasttoken"])
def test_a_long_text_is_streamed_with_the_result_of_one_pass(encoder, pooling):
    texts = [make_texts(1, 900, seed)[0] for seed in range(3)] + ["short"]
    encoder[0].pooling_mode = pooling
    want = encoder.encode(texts)
    encoder[0].token_budget = 32
    calls = []
    encoder[0].model.register_forward_pre_hook(
        lambda _, args, inputs: calls.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    assert close(encoder.encode(texts), want, 1e-5)
    assert max(calls) == encoder[0].segment == 64


def test_poolings_agree_with_stock_pooling(folders, encoder):
    from sentence_transformers import SentenceTransformer

    texts = make_texts(9, 30)
    for mode in ("max", "lasttoken"):
        stock = SentenceTransformer(str(folders / "stock"))
        stock[1].pooling_mode = mode
        encoder[0].pooling_mode = mode
        assert close(encoder.encode(texts), stock.encode(texts)), mode


def test_token_embeddings_come_when_asked_for(encoder, stock):
    texts = make_texts(9, 30)
    for budget in (None, 2):
        encoder[0].token_budget = budget
        got = encoder.encode(texts, output_value="token_embeddings")
        want = stock.encode(texts, output_value="token_embeddings")
        assert all(close(a, b, 1e-5) for a, b in zip(got, want, strict=True))
    features = encoder.preprocess(texts)
    with torch.inference_mode():
        out = encoder(features)
    assert "token_embeddings" not in out
    assert torch.equal(out["attention_mask"], features["attention_mask"])
    with pytest.raises(KeyError):
        out["nonsense"]


def test_options_of_encode(encoder, stock):
    texts = make_texts(9, 30)
    for options in (
        {"truncate_dim": 16},
        {"truncate_dim": 16, "normalize_embeddings": True},
        {"precision": "int8"},
        {"precision": "ubinary"},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"prompt": "the red book: "},
        {"show_progress_bar": True},
    ):
        got, want = encoder.encode(texts, **options), stock.encode(texts, **options)
        assert type(got) is type(want), options
        got, want = (torch.stack(x) if isinstance(x, list) else torch.as_tensor(x) for x in (got, want))
        assert got.shape == want.shape
        assert (got.float() - want.float()).abs().max() <= (1 if "precision" in options else 1e-6), options
    encoder.prompts = {"query": "red ", "document": "old "}
    assert close(encoder.encode_query(texts), encoder.encode(["red " + text for text in texts]))
    assert close(encoder.encode_document(texts), encoder.encode(["old " + text for text in texts]))


def test_max_seq_length_truncates_only_when_it_is_set(encoder, stock):
    texts = make_texts(6, 200)
    assert encoder.max_seq_length == 10**9
    assert encoder.encode("dog " * 3000).tolist() != encoder.encode("dog " * 100).tolist()
    encoder.max_seq_length, before = 12, stock.max_seq_length
    stock.max_seq_length = 12
    try:
        assert close(encoder.encode(texts), stock.encode(texts))
        encoder[0].token_budget = 4
        assert close(encoder.encode(texts), stock.encode(texts), 1e-5)
    finally:
        stock.max_seq_length = before
    for bad in (0, 2, -1, "12", 3.5):
        with pytest.raises(ValueError, match="max_seq_length"):
            encoder.max_seq_length = bad
    encoder.max_seq_length = None
    assert encoder.max_seq_length == 10**9
    assert encoder[0].get_config_dict()["max_seq_length"] is None


def test_features_are_those_of_everybody(encoder, stock):
    texts = [*make_texts(5, 30), ""]
    got, want = encoder.preprocess(texts), stock.preprocess(texts)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(got[name], want[name])
        assert got[name].dtype == want[name].dtype == torch.int64
    prompt = "the red book: "
    assert encoder.preprocess(texts, prompt=prompt)["prompt_length"] == 5
    assert stock.preprocess(texts, prompt=prompt)["prompt_length"] == 5
    assert encoder.preprocess([]) == {}


def test_padding_may_be_anywhere_in_the_features(encoder):
    ids = [encoder[0].text_tokenizer.encode([text])[0] for text in ("the dog plays", "a cat", "the old river")]
    want = encoder.encode(["the dog plays", "a cat", "the old river"])
    g = torch.Generator().manual_seed(0)
    rows, masks = torch.full((3, 12), 7), torch.zeros(3, 12, dtype=torch.long)
    for i, row in enumerate(ids):
        places = torch.randperm(12, generator=g)[: len(row)].sort().values
        rows[i, places], masks[i, places] = torch.tensor(row), 1
    with torch.no_grad():
        got = encoder({"input_ids": rows, "attention_mask": masks})["sentence_embedding"]
        assert close(got, want)
        row = torch.tensor([[x for row in ids for x in row]])
        bounds = torch.tensor([0, *map(len, ids)]).cumsum(0)
        assert close(encoder({"input_ids": row, "cu_seq_lens_q": bounds})["sentence_embedding"], want)
        for mask in (masks[:, :-1], torch.zeros_like(masks)):
            with pytest.raises(ValueError, match="attention_mask must be|needs one at least"):
                encoder({"input_ids": rows, "attention_mask": mask})


def test_output_value_none_gives_each_text_its_own(encoder):
    texts = ["the dog plays", "a cat", "the old river"]
    found = encoder.encode(texts, output_value=None)
    embeddings = encoder.encode(texts)
    for text, item, embedding in zip(texts, found, embeddings, strict=True):
        own = encoder[0].text_tokenizer.encode([text])[0]
        assert item["input_ids"][item["attention_mask"].bool()].tolist() == own
        assert close(item["sentence_embedding"], embedding)


def test_options_of_one_call_are_honoured_or_refused(encoder, stock):
    texts = make_texts(6, 60)
    whole = encoder.encode(texts)
    for options in (
        {"text": {"max_length": 9}},
        {"text": {"max_length": 9, "truncation": True, "padding": True}},
        {"text": {"truncation": "longest_first"}, "common": {"max_length": 9, "return_tensors": "pt"}},
    ):
        got, want = (model.encode(texts, processing_kwargs=options) for model in (encoder, stock))
        assert close(got, want), options
        assert not close(got, whole)
    encoder.max_seq_length = 9
    assert close(encoder.encode(texts, processing_kwargs={"text": {"truncation": False}}), whole)
    encoder.max_seq_length = None
    assert encoder.preprocess(texts, max_length=9)["input_ids"].shape == (6, 9)
    assert close(encoder.encode(texts, processing_kwargs={"text": {}, "image": {}}), whole)
    for options, named in (
        ({"text": {"stride": 3}}, "stride"),
        ({"text": {"padding": "max_length"}}, "padding='max_length'"),
        ({"text": {"truncation": "only_second"}}, "truncation='only_second'"),
        ({"text": {"max_length": 0}}, "max_length"),
        ({"audio": {"sampling_rate": 16_000}}, "audio"),
        ({"common": {"return_tensors": "np"}}, "return_tensors='np'"),
    ):
        with pytest.raises(ValueError, match=named):
            encoder.encode(texts, processing_kwargs=options)
    with pytest.raises(ValueError, match="tokenised with stride"):
        encoder.preprocess(texts, prompt="red ", stride=3)


@pytest.mark.parametrize("pooling", ["mean", "max", "lasttoken"])
def test_a_prompt_is_left_out_of_the_pooling_when_asked(folders, pooling, tmp_path):
    from sentence_transformers import SentenceTransformer

    texts, prompt = [*make_texts(8, 60), "dog"], "the red book: "
    encoder = SentenceTransformer(str(folders / "own"), trust_remote_code=True)
    stock = SentenceTransformer(str(folders / "stock"))
    encoder[0].pooling_mode = stock[1].pooling_mode = pooling
    within = encoder.encode(texts, prompt=prompt)
    for model in (encoder, stock):
        model.set_pooling_include_prompt(False)
    want = stock.encode(texts, prompt=prompt)
    assert close(encoder.encode(texts, prompt=prompt), want)
    assert close(encoder.encode(texts), stock.encode(texts))
    assert close(want, within) == (pooling == "lasttoken")
    encoder[0].token_budget = 4
    assert close(encoder.encode(texts, prompt=prompt), want, 1e-5)
    encoder.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True)
    assert close(again.encode(texts, prompt=prompt), want, 1e-5)
    encoder.max_seq_length = 4  # nothing but the prompt is left: the closing token stands for the text
    assert np.isfinite(encoder.encode(texts, prompt=prompt)).all()


@pytest.mark.parametrize("pad", [0, 7])
def test_a_wide_batch_holds_the_same_in_small_types(monkeypatch, pad):
    rows = [[2, 5, 3], [2, 3], [2, 5, 6, 3]]
    usual = module.padded(rows, pad)
    assert module.packed(usual | {"attention_mask": None})[1] == [4, 4, 4]
    monkeypatch.setattr(module, "WIDE", 3)
    wide = module.padded(rows, pad)
    assert (wide["input_ids"].dtype, wide["attention_mask"].dtype) == (torch.int32, torch.bool)
    for name, values in wide.items():
        assert torch.equal(values.long(), usual[name])
    ids, lengths = module.packed(wide)
    assert ids.tolist() == [token for row in rows for token in row]
    assert lengths == [3, 2, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="where memory is counted in pages of 4 KB")
@pytest.mark.slow
def test_one_long_text_in_a_batch_does_not_fill_the_memory_with_padding(folders):
    """Ids of 400 texts, one of them of 120,000 tokens: 48 million places, 0.77 GB if they were written."""
    code = """
import resource, sys
from lam_transformers import LAMTransformer
from lam_transformers.model.sentence_transformers_module import packed
module, texts = LAMTransformer.load(sys.argv[1]), ["dog"] * 399
packed(module.preprocess(["the dog " * 2000, *texts]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
features = module.preprocess(["the dog " * 60_000, *texts])
row, lengths = packed(features)
print(features["input_ids"].shape, sum(lengths), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folders / "own")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *shown, megabytes = done.stdout.split()
    assert " ".join(shown) == f"torch.Size([400, 120002]) {120_002 + 399 * 3}"
    assert int(megabytes) < 50


def test_progress_within_one_long_text(encoder, capsys):
    encoder[0].token_budget = 8
    encoder.encode("the dog runs " * 100, show_progress_bar=True)
    assert "token/s" in capsys.readouterr().err
    encoder.encode("the dog runs " * 100, show_progress_bar=False)
    assert "token/s" not in capsys.readouterr().err


@pytest.mark.parametrize("bad", [None, b"bytes", 3, "lone \ud800 surrogate", {"text": "a"}, ("a", "b")])
def test_what_cannot_be_embedded_is_a_value_error_that_names_it(encoder, bad):
    with pytest.raises(ValueError, match=r"LAM embeds strings|lone surrogate"):
        encoder.encode(["the dog", bad], prompt="red ")


@pytest.mark.parametrize("changes", [{"pooling_mode": "cls"}, {"token_budget": 0}, {"max_seq_length": 1}])
def test_settings_that_do_not_fit_are_refused(tiny_model, tokenizer, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        LAMTransformer(tiny_model, tokenizer, **changes)


def test_gradients_flow_through_a_packed_row(encoder):
    texts = make_texts(5, 20)
    encoder.train()
    features = encoder.preprocess(texts)
    embeddings = encoder(features)["sentence_embedding"]
    embeddings[2].sum().backward()
    table = encoder[0].model.embeddings.word_embeddings.weight.grad
    used = encoder[0].text_tokenizer.encode([texts[2]])[0]
    assert set(table.abs().sum(1).nonzero().squeeze(1).tolist()) == set(used)
    assert all(p.grad is not None for p in encoder[0].model.parameters())


def test_cached_losses_of_sentence_transformers_slice_the_rows(encoder):
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    anchors, positives = make_texts(8, 12, 1), make_texts(8, 12, 2)
    encoder.train()
    losses, gradients = [], []
    weight = encoder[0].model.layers[0].memory.out_proj.weight
    for loss in (MultipleNegativesRankingLoss(encoder), CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=3)):
        weight.grad = None
        value = loss([encoder.preprocess(anchors), encoder.preprocess(positives)], None)
        value.backward()
        losses.append(value.item())
        gradients.append(weight.grad.clone())
    assert abs(losses[0] - losses[1]) < 1e-5
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max() + 1e-7


STRANGER = """
import sys
sys.modules["lam_transformers"] = None
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], trust_remote_code=True)
np.save(sys.argv[2], model.encode(sys.argv[3:]))
"""


def as_a_stranger(folder, texts, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    out = tmp_path / "embeddings.npy"
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, str(folder), str(out), *texts],
        env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(out)


@pytest.mark.parametrize("door", ["remote code", pytest.param("package", marks=pytest.mark.slow)])
def test_saved_again_it_loads_as_a_stranger(folders, encoder, door, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize

    texts = make_texts(5, 20)
    want = encoder.encode(texts)
    if door == "package":
        encoder = SentenceTransformer(modules=[LAMTransformer.load(str(folders / "own")), Normalize()])
        assert close(encoder.encode(texts), want)
    encoder[0].token_budget = 77
    encoder.save_pretrained(str(tmp_path / "again"))
    assert all((tmp_path / "again" / name).exists() for name in SHIPPED_CODE)
    assert json.loads((tmp_path / "again/sentence_lam_config.json").read_text())["token_budget"] == 77
    assert close(as_a_stranger(tmp_path / "again", texts, tmp_path), want)


def test_a_stock_folder_has_stock_modules_only(folders, tmp_path):
    assert "sentence_transformers_module" not in (folders / "stock/modules.json").read_text()
    export_model(folders / "own", tmp_path / "folder", torch.float32, stock=True)
    export_model(folders / "own", tmp_path / "folder", torch.float32)
    names = {p.relative_to(tmp_path / "folder").as_posix() for p in (tmp_path / "folder").rglob("*.json")}
    assert names == {
        "1_Normalize/config.json", "config.json", "config_sentence_transformers.json", "modules.json",
        "sentence_lam_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.slow
def test_several_processes_give_the_same(encoder, folders):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize

    texts = make_texts(20, 30)
    want = encoder.encode(texts)
    assert close(encoder.encode(texts, device=["cpu", "cpu"], chunk_size=4), want)
    packaged = SentenceTransformer(modules=[LAMTransformer.load(str(folders / "own")), Normalize()])
    assert close(packaged.encode(texts, device=["cpu", "cpu"], chunk_size=4), want)
