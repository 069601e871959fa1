"""The published forward rules: equal to their mathematics at every length, for each text by itself in any batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from lam_transformers import LAMPublishedConfig, LAMPublishedModel
from lam_transformers.checkpoints.convert import PUBLISHED_CODE, convert
from lam_transformers.checkpoints.export import SHIPPED_CODE, shipped_file

from ..checkpoints.published_checkpoints import SMALL, one_file
from ..helpers import assert_close_rms, hidden, make_mask, random_ids
from . import published_reference

LENGTHS = (1, 5, 32, 33, 63, 64, 65, 96, 128, 130, 160, 256, 300)
RULES = [("final", "flat"), ("main", "main"), ("final", "main"), ("main", "flat")]


def arrays(tensors):
    return {name: x.numpy() for name, x in tensors.items()}


@pytest.fixture(scope="module")
def convert_small(tokenizer, tmp_path_factory):
    """(folder, published weights) of a small converted checkpoint; each is made once."""
    made = {}

    def make(layout="final", rule="flat"):
        if (layout, rule) not in made:
            folder = tmp_path_factory.mktemp("published")
            tokenizer.save_pretrained(folder)
            weights = one_file(layout, SMALL)
            torch.save(weights, folder / "pytorch_model.bin")
            convert([folder], folder / "converted", rule=rule)
            made[layout, rule] = folder / "converted", arrays(weights)
        return made[layout, rule]

    return make


@pytest.fixture(scope="module")
def model(convert_small):
    return LAMPublishedModel.from_pretrained(convert_small()[0])


@pytest.fixture(scope="module")
def main_model(convert_small):
    return LAMPublishedModel.from_pretrained(convert_small("main", "main")[0])


@pytest.mark.parametrize(("layout", "rule"), RULES)
def test_every_layer_equals_the_published_mathematics_at_every_length(convert_small, layout, rule):
    folder, weights = convert_small(layout, rule)
    single, double = (AutoModel.from_pretrained(folder, dtype=x) for x in (torch.float32, torch.float64))
    assert type(single) is LAMPublishedModel
    for length in LENGTHS:
        ids = random_ids(1, length, vocab_size=SMALL.vocab, seed=length)
        want = published_reference.hidden_states(weights, ids[0].numpy(), SMALL.heads, rule)
        for model, bound in ((single, 1e-5), (double, 1e-10)):
            with torch.no_grad():
                output = model(ids, output_hidden_states=True)
            assert len(output.hidden_states) == len(want) == 1 + SMALL.layers
            for i, (got, expected) in enumerate(zip(output.hidden_states, want, strict=True)):
                assert_close_rms(f"layer {i} at length {length}", got[0], torch.from_numpy(expected), bound)
            pooled = torch.nn.functional.normalize(output.last_hidden_state[0].mean(0), dim=0)
            expected = torch.from_numpy(want[-1].mean(0))
            assert_close_rms(f"embedding at length {length}", pooled, expected / expected.norm(), bound)


@pytest.mark.parametrize("kind", ["right", "left", "holes"])
@pytest.mark.parametrize(("layout", "rule"), RULES[:2])
def test_a_text_in_a_batch_has_the_result_it_has_alone(convert_small, layout, rule, kind):
    model = LAMPublishedModel.from_pretrained(convert_small(layout, rule)[0], dtype=torch.float32)
    lengths = (130, 65, 64, 64, 33, 1)
    mask = make_mask(kind, lengths, 130)
    ids = random_ids(len(lengths), 130, vocab_size=SMALL.vocab)
    with torch.no_grad():
        got = model(ids, attention_mask=mask, output_hidden_states=True)
        for row, real in enumerate(mask.bool()):
            alone = model(ids[row : row + 1, real], output_hidden_states=True)
            for states, expected in zip(got.hidden_states, alone.hidden_states, strict=True):
                assert_close_rms(f"text {row}", states[row, real], expected[0], 1e-6)
    assert not got.last_hidden_state[mask == 0].any()


def test_many_texts_are_read_in_parts_of_bounded_size(model, monkeypatch):
    ids = random_ids(7, 40, vocab_size=SMALL.vocab)
    whole = hidden(model, ids)
    module = sys.modules[LAMPublishedModel.__module__]
    monkeypatch.setattr(module, "ENTRIES_AT_ONCE", 2 * SMALL.heads * 40 * 40)
    assert_close_rms("in parts", hidden(model, ids), whole, 1e-6)


def test_arithmetic_in_single_precision_is_a_choice(convert_small):
    folder, _ = convert_small()
    ids = random_ids(2, 60, vocab_size=SMALL.vocab)
    single = AutoModel.from_pretrained(folder, arithmetic="float32")
    assert single.dtype == torch.float32
    wide = hidden(AutoModel.from_pretrained(folder), ids)
    assert wide.dtype == torch.float32
    assert not torch.equal(hidden(single, ids), wide)
    assert_close_rms("single", hidden(single, ids), wide, 1e-4)


@pytest.mark.parametrize(
    "request_",
    [
        {"use_cache": True},
        {"cache": object()},
        {"cache_params": object()},
        {"past_key_values": object()},
        {"cu_seq_lens_q": torch.tensor([0, 4, 9])},
    ],
)
def test_streaming_and_packing_are_refused_with_the_reason(model, main_model, request_):
    for each in (model, main_model):
        with pytest.raises(ValueError, match="looks one token ahead and their chunks follow from the length"):
            each(random_ids(1, 9, vocab_size=SMALL.vocab), **request_)
        with pytest.raises(ValueError, match="whole texts only"):
            each.new_state(1)


def test_a_text_longer_than_the_position_table_is_an_error(model):
    ids = random_ids(2, SMALL.positions + 1, vocab_size=SMALL.vocab)
    with pytest.raises(ValueError, match=r"321 tokens.*at most 320: truncate"):
        model(ids)
    mask = make_mask("right", (SMALL.positions, 3), SMALL.positions + 1)
    assert hidden(model, ids, attention_mask=mask).isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": None}, "input_ids must be"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "at least one token"),
        ({"input_ids": torch.tensor([[SMALL.vocab]])}, "holds 109 to 109, the model knows 0 to 108"),
        ({"token_type_ids": torch.tensor([[0, 2, 0]])}, "token_type_ids holds"),
        ({"position_ids": torch.tensor([[4, 5, 6]])}, "position_ids is not read"),
        ({"attention_mask": torch.ones(1, 4)}, "attention_mask must be"),
        ({"attention_mask": torch.tensor([[1, 2, 0]])}, "only 1"),
        ({"attention_mask": torch.tensor([[0, 0, 0]])}, "no real token in batch rows"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(**({"input_ids": torch.tensor([[3, 4, 5]])} | inputs))


def test_token_types_and_tuples(model):
    ids = random_ids(2, 9, vocab_size=SMALL.vocab)
    types = torch.ones_like(ids)
    assert not torch.allclose(hidden(model, ids), hidden(model, ids, token_type_ids=types))
    assert torch.equal(hidden(model, ids), hidden(model, ids, token_type_ids=torch.zeros_like(ids)))
    last, states = model(ids, output_hidden_states=True, return_dict=False)
    assert torch.equal(last, states[-1])


def test_half_precision_stays_close(main_model, convert_small):
    ids = random_ids(2, 70, vocab_size=SMALL.vocab)
    want = hidden(main_model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close_rms("autocast", hidden(main_model, ids), want, 0.05)
    half = LAMPublishedModel.from_pretrained(convert_small("main", "main")[0], dtype=torch.bfloat16)
    assert_close_rms("bfloat16 weights", hidden(half, ids).float(), want, 0.1)


def test_a_new_model_has_no_uninitialised_parameter_and_no_buffer():
    for layout in ("final", "main"):
        config = LAMPublishedConfig(
            vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, layout=layout
        )
        model = AutoModel.from_config(config)
        assert not [name for name, p in model.named_parameters() if not p.isfinite().all()]
        assert not list(model.named_buffers())


def test_every_parameter_that_the_rule_reads_has_a_gradient(main_model):
    model = LAMPublishedModel(main_model.config)
    model.load_state_dict(main_model.state_dict())
    model(random_ids(2, 96, vocab_size=SMALL.vocab)).last_hidden_state[..., 0].sum().backward()
    without = {name.split(".", 2)[-1] for name, p in model.named_parameters() if p.grad is None}
    assert without == {"memory.o_norm.gate"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "new"}, "layout must be one of final, main, got 'new'"),
        ({"arithmetic": "float16"}, "arithmetic must be one of"),
        ({"rule": "deep"}, "rule must be one of flat, main, got 'deep'"),
        ({"hidden_size": 10, "num_attention_heads": 3}, "multiple of num_attention_heads"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ],
)
def test_an_impossible_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LAMPublishedConfig(**fields)


def test_a_saved_folder_holds_its_code_and_loads_again(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == set(PUBLISHED_CODE)
    ids = random_ids(1, 12, vocab_size=SMALL.vocab)
    assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path), ids), hidden(model, ids))
    assert type(AutoConfig.from_pretrained(tmp_path)) is LAMPublishedConfig


def test_incomplete_and_damaged_weights_are_refused(model, convert_small, tmp_path):
    state = model.state_dict()
    state.pop("layers.1.memory.g_proj.weight")
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(OSError, match=r"missing \['layers.1.memory.g_proj.weight'\]"):
        LAMPublishedModel.from_pretrained(tmp_path)
    data = bytearray((convert_small()[0] / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(OSError, match="does not match its own SHA-256"):
        LAMPublishedModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(OSError, match="is damaged"):
        LAMPublishedModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED_CODE)
def test_shipped_code_is_short_and_flat(name):
    lines = shipped_file(name).read_text().splitlines()
    assert len(lines) < 450
    relative = [line for line in lines if line.strip().startswith("from .")]
    assert all(line.split()[1].lstrip(".") + ".py" in PUBLISHED_CODE for line in relative), relative


@pytest.mark.parametrize("name", SHIPPED_CODE)
def test_the_trunk_is_free_of_it(name):
    assert "published" not in shipped_file(name).read_text()


def test_sentence_transformers_gives_the_published_embeddings(convert_small):
    from sentence_transformers import SentenceTransformer

    folder, weights = convert_small()
    encoder = SentenceTransformer(str(folder), trust_remote_code=True)
    assert encoder.max_seq_length == SMALL.positions
    texts = ["the dog sleeps", "", "a woman reads the old book in the house " * 9, "the cat " * 400]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == SMALL.positions
    for text, got in zip(texts, encoder.encode(texts), strict=True):
        ids = tokenizer(text, truncation=True)["input_ids"]
        assert len(ids) <= SMALL.positions
        want = published_reference.embedding(weights, np.array(ids), SMALL.heads, "flat")
        assert np.abs(got - want).max() < 1e-5


STRANGER = """
import sys
sys.modules["lam_transformers"] = None
import numpy as np, torch
from transformers import AutoModel
from sentence_transformers import SentenceTransformer
model, info = AutoModel.from_pretrained("converted", trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
assert model.dtype == torch.float32 and "transformers_modules" in type(model).__module__
encoder = SentenceTransformer("converted", trust_remote_code=True)
np.save(sys.argv[1], encoder.encode(["the dog sleeps", "a woman reads"]))
encoder.save_pretrained("again")
"""


@pytest.mark.slow
def test_a_stranger_loads_the_folder(convert_small, tmp_path):
    folder, _ = convert_small("main", "main")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, str(tmp_path / "embeddings.npy")],
        cwd=folder.parent, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    from sentence_transformers import SentenceTransformer

    want = SentenceTransformer(str(folder), trust_remote_code=True).encode(["the dog sleeps", "a woman reads"])
    assert np.abs(np.load(tmp_path / "embeddings.npy") - want).max() < 1e-6
    again = folder.parent / "again"
    assert all((again / name).is_file() for name in PUBLISHED_CODE)


def test_the_folder_holds_exactly_what_it_should(convert_small):
    folder, _ = convert_small()
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert found == {
        "1_Pooling/config.json", "2_Normalize/config.json", "README.md", "config.json", "conversion.json",
        "config_sentence_transformers.json", "model.safetensors", "modules.json", "sentence_bert_config.json",
        "tokenizer.json", "tokenizer_config.json", *PUBLISHED_CODE,
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["model_type"] == "lam_published"
    for name in PUBLISHED_CODE:
        assert (folder / name).read_bytes() == shipped_file(name).read_bytes()
