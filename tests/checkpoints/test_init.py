"""lam_from_bert: everything that a BERT has is taken over, everything else starts as LAM starts."""

import shutil

import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from lam_transformers import LAMConfig, LAMModel
from lam_transformers.checkpoints.init import config_from_bert, init_model, lam_from_bert
from lam_transformers.model.memory_lam import starting_decay_bias

from ..helpers import assert_close_rms, hidden, random_ids


@pytest.fixture(scope="module")
def bert(tiny_bert):
    return BertModel.from_pretrained(tiny_bert).eval()


@pytest.fixture(scope="module")
def lam(tiny_bert):
    return lam_from_bert(tiny_bert, output_gate_rank=8)


def test_the_geometry_and_the_overrides_reach_the_config(bert, lam):
    assert type(lam) is LAMModel
    assert not lam.training
    assert {p.dtype for p in lam.parameters()} == {torch.float32}
    assert lam.config.output_gate_rank == 8
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(lam.config, name) == getattr(bert.config, name)
    assert lam.config.position_table_size == bert.config.max_position_embeddings
    assert lam.config.layer_norm_eps == bert.config.layer_norm_eps


def test_embeddings_feed_forward_layers_and_norms_are_the_berts(bert, lam):
    ids = random_ids(2, 11, vocab_size=lam.config.vocab_size)
    types = torch.ones_like(ids)
    ours = lam(ids, token_type_ids=types, output_hidden_states=True).hidden_states[0]
    assert_close_rms("embeddings", ours, bert.embeddings(input_ids=ids, token_type_ids=types), 1e-6)
    for layer, source in zip(lam.layers, bert.encoder.layer, strict=True):
        pairs = [
            (layer.memory_norm, source.attention.output.LayerNorm),
            (layer.feed_forward.in_proj, source.intermediate.dense),
            (layer.feed_forward.out_proj, source.output.dense),
            (layer.feed_forward_norm, source.output.LayerNorm),
        ]
        for got, want in pairs:
            assert torch.equal(got.weight, want.weight)
            assert torch.equal(got.bias, want.bias)
        x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
        got = layer.feed_forward_norm(x + layer.feed_forward(x))
        assert_close_rms("feed-forward block", got, source.output(source.intermediate(x), x), 1e-6)


def test_the_memory_starts_from_the_attentions_projections(bert, lam):
    for layer, source in zip(lam.layers, bert.encoder.layer, strict=True):
        memory, attention = layer.memory, source.attention
        projections = (attention.self.query, attention.self.key, attention.self.value)
        for i, projection in enumerate(projections):
            rows = slice(64 * i, 64 * (i + 1))
            assert torch.equal(memory.in_proj.weight[rows], projection.weight)
            assert torch.equal(memory.conv1d.bias[rows], projection.bias)
        assert torch.equal(memory.out_proj.weight, attention.output.dense.weight)
        assert torch.equal(memory.out_proj.bias, attention.output.dense.bias)
        x = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0))
        got, _ = memory._convolve(memory.in_proj(x)[..., :192], None, None)
        want = torch.cat([projection(x) for projection in projections], -1)
        assert_close_rms("q, k, v before their activation", got, want, 1e-6)


def test_what_a_bert_does_not_have_starts_as_in_a_new_lam(lam):
    for layer in lam.layers:
        memory = layer.memory
        assert torch.equal(memory.decay_bias, starting_decay_bias(lam.config))
        assert torch.equal(memory.norm_weight, torch.ones(32))
        assert not memory.flux.out_proj.weight.any()
        taps = torch.zeros_like(memory.conv1d.weight)
        taps[..., -1] = 1
        assert torch.equal(memory.conv1d.weight, taps)


def test_the_result_runs_and_reloads(lam, tmp_path):
    lam.save_pretrained(tmp_path)
    ids = random_ids(2, 60, vocab_size=lam.config.vocab_size)
    want = hidden(lam, ids)
    assert want.isfinite().all()
    assert torch.equal(hidden(LAMModel.from_pretrained(tmp_path), ids), want)


def test_a_base_that_is_no_bert_is_refused(tmp_path):
    DistilBertModel(DistilBertConfig(dim=16, n_heads=2, n_layers=1, hidden_dim=16, vocab_size=20)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"BERT-type model.*'distilbert'"):
        lam_from_bert(tmp_path)


def test_a_bert_without_absolute_positions_is_refused():
    config = BertConfig()
    config.position_embedding_type = "relative_key"
    with pytest.raises(ValueError, match=r"absolute positions.*'relative_key'"):
        config_from_bert(config)


def test_a_base_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        lam_from_bert(tmp_path / "nothing")


def test_an_unsuitable_override_is_refused():
    with pytest.raises(ValueError, match="cross_timescale"):
        config_from_bert(BertConfig(), cross_timescale=0.7)
    assert type(config_from_bert(BertConfig())) is LAMConfig


def test_a_damaged_base_is_one_clear_line(tiny_bert, tmp_path):
    folder = tmp_path / "bert"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copytree(tiny_bert, folder, dirs_exist_ok=True)
        (folder / name).write_text("{")
        with pytest.raises(OSError, match=f"{name} is damaged") as caught:
            init_model(folder, tmp_path / "out", 8)
        assert "\n" not in str(caught.value)
    shutil.copytree(tiny_bert, folder, dirs_exist_ok=True)
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content.replace('"WordPiece"', '"WordPeace"'))
    with pytest.raises(OSError, match="The tokenizer of .* cannot be loaded"):
        init_model(folder, tmp_path / "out2", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]  # no half a folder, by whichever name
