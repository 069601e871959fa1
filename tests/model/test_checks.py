"""What the model refuses: inputs that do not fit together, damaged weights."""

import hashlib
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lam_transformers.model.checks_lam import weights_checksum

from ..helpers import hidden, make_mask

WEIGHTS = "model.safetensors"


def test_exactly_one_of_ids_and_embeddings_must_be_given(tiny_model, ids):
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        tiny_model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        tiny_model(ids, inputs_embeds=torch.zeros(3, 21, 64))


@pytest.mark.parametrize("value", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused_by_value(tiny_model, ids, value):
    ids[1, 4] = value
    with pytest.raises(ValueError, match=f"input_ids.*{value}"):
        tiny_model(ids)
    ids[1, 4] = tiny_model.config.vocab_size
    with pytest.raises(ValueError, match=f"input_ids.*{tiny_model.config.vocab_size}"):
        tiny_model(ids)


def test_token_types_and_positions_outside_their_range_are_refused(tiny_model, ids):
    with pytest.raises(ValueError, match=r"token_type_ids.*2"):
        tiny_model(ids, token_type_ids=torch.full_like(ids, 2))
    with pytest.raises(ValueError, match=r"position_ids.*-3"):
        tiny_model(ids, position_ids=torch.full_like(ids, -3))
    with pytest.raises(ValueError, match="position_ids"):
        tiny_model(ids, position_ids=torch.zeros(3, 5, dtype=torch.long))


@pytest.mark.parametrize("shape", [(21,), (3, 0), (0, 21), (3, 21, 1)], ids=str)
def test_ids_of_the_wrong_shape_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match="input_ids"):
        tiny_model(torch.ones(shape, dtype=torch.long))


@pytest.mark.parametrize("shape", [(3, 21), (3, 0, 64), (3, 21, 63)], ids=str)
def test_embeddings_of_the_wrong_shape_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match="inputs_embeds"):
        tiny_model(inputs_embeds=torch.zeros(shape))


def test_nan_in_embeddings_is_refused_by_row(tiny_model):
    embeds = torch.randn(4, 6, 64)
    embeds[1, 5, 3] = embeds[3, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN in batch rows \[1, 3\]"):
        tiny_model(inputs_embeds=embeds)


@pytest.mark.parametrize("shape", [(3, 20), (1, 21), (21,), (3, 1, 21)], ids=str)
def test_a_mask_of_the_wrong_shape_is_refused(tiny_model, ids, shape):
    with pytest.raises(ValueError, match="attention_mask must be"):
        tiny_model(ids, attention_mask=torch.ones(shape, dtype=torch.long))


@pytest.mark.parametrize("value", [2, -1, 0.5, torch.nan, -1e4])
def test_a_mask_with_other_values_than_0_and_1_is_refused(tiny_model, ids, value):
    mask = torch.ones(3, 21)
    mask[2, 2] = value
    with pytest.raises(ValueError, match="attention_mask must hold only 1"):
        tiny_model(ids, attention_mask=mask)


def test_a_row_without_a_real_token_is_refused_by_number(tiny_model, ids):
    mask = torch.ones_like(ids)
    mask[1] = 0
    with pytest.raises(ValueError, match=r"attention_mask has no real token in batch rows \[1\]"):
        tiny_model(ids, attention_mask=mask)


@pytest.mark.parametrize("bounds", [[0, 4, 3, 21], [1, 21], [0, 20], [0], [[0, 21]]], ids=str)
def test_bounds_of_packed_texts_that_do_not_rise_are_refused(tiny_model, ids, bounds):
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        tiny_model(ids[:1], cu_seq_lens_q=torch.tensor(bounds))


def test_a_packed_row_must_be_one_row_without_padding(tiny_model, ids):
    bounds = torch.tensor([0, 10, 21])
    with pytest.raises(ValueError, match=r"cu_seq_lens_q.*B = 3"):
        tiny_model(ids, cu_seq_lens_q=bounds)
    with pytest.raises(ValueError, match="no padding"):
        tiny_model(ids[:1], cu_seq_lens_q=bounds, attention_mask=make_mask("left", (9,)))
    hidden(tiny_model, ids[:1], cu_seq_lens_q=bounds, attention_mask=torch.ones(1, 21))


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_refused_and_unchanged(folder: Path, *words: str):
    before = {path: file_hash(path) for path in folder.iterdir() if path.is_file()}
    with pytest.raises(OSError) as caught:
        transformers.AutoModel.from_pretrained(folder)
    for word in words:
        assert word in str(caught.value)
    assert {path: file_hash(path) for path in folder.iterdir() if path.is_file()} == before


def write_with_checksum(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors, path, {"format": "pt"})
    save_file(tensors, path, {"format": "pt", "sha256": weights_checksum(path)})


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_weights_file_is_refused(tiny_folder, keep):
    path = tiny_folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused_and_unchanged(tiny_folder, WEIGHTS, str(tiny_folder))


def test_weights_with_their_checksum_load(tiny_model, tiny_folder, ids):
    write_with_checksum(tiny_folder / WEIGHTS)
    model = transformers.AutoModel.from_pretrained(tiny_folder)
    assert torch.equal(hidden(model, ids), hidden(tiny_model, ids))


@pytest.mark.parametrize("place", [-1, -5000])
def test_weights_that_differ_from_their_checksum_are_refused(tiny_folder, place):
    path = tiny_folder / WEIGHTS
    write_with_checksum(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert_refused_and_unchanged(tiny_folder, WEIGHTS, "SHA-256")


def test_weights_whose_tensors_were_renamed_differ_from_their_checksum(tiny_folder):
    path = tiny_folder / WEIGHTS
    write_with_checksum(path)
    data = path.read_bytes()
    assert b"layers.0.memory_norm.bias" in data
    path.write_bytes(data.replace(b"layers.0.memory_norm.bias", b"layers.9.memory_norm.bias"))
    assert_refused_and_unchanged(tiny_folder, WEIGHTS)


def test_one_truncated_file_of_several_is_refused_by_its_name(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="100KB")
    path = sorted(tmp_path.glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused_and_unchanged(tmp_path, path.name)


def test_a_folder_without_weights_is_refused(tiny_folder):
    (tiny_folder / WEIGHTS).unlink()
    assert_refused_and_unchanged(tiny_folder, WEIGHTS, str(tiny_folder))


@pytest.mark.parametrize("name", ["layers.1.memory.decay_bias", "embeddings.word_embeddings.weight"])
def test_a_missing_tensor_is_refused_by_name(tiny_folder, name):
    tensors = load_file(tiny_folder / WEIGHTS)
    del tensors[name]
    save_file(tensors, tiny_folder / WEIGHTS, {"format": "pt"})
    assert_refused_and_unchanged(tiny_folder, str(tiny_folder), name)


def test_an_unknown_tensor_is_refused_by_name(tiny_folder):
    tensors = load_file(tiny_folder / WEIGHTS)
    tensors["layers.0.memory.extra"] = torch.ones(2)
    save_file(tensors, tiny_folder / WEIGHTS, {"format": "pt"})
    assert_refused_and_unchanged(tiny_folder, str(tiny_folder), "layers.0.memory.extra")
