"""The configuration: what it keeps and what it refuses."""

import math

import pytest
import transformers

from lam_transformers import LAMConfig


def test_config_round_trip_keeps_every_field(tmp_path):
    changed = {
        "vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 77,
        "hidden_act": "relu", "position_table_size": 33, "type_vocab_size": 3, "layer_norm_eps": 1e-6,
        "conv_kernel": 3, "cross_timescale": -0.2, "flux_hidden_size": 5, "output_gate_rank": None,
        "memory_norm_eps": 1e-4, "fast_decay_init": 0.2, "slow_decay_init": [0.5, 0.9], "chunk_size": 7,
        "initializer_range": 0.03, "pad_token_id": 1, "use_cache": True,
    }  # fmt: skip
    LAMConfig(**changed).save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LAMConfig
    assert {name: getattr(loaded, name) for name in changed} == changed
    assert loaded.head_size == 12


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_attention_heads", 7),
        ("cross_timescale", 0.5),
        ("cross_timescale", -0.75),
        ("cross_timescale", math.nan),
        ("output_gate_rank", -3),
        ("chunk_size", 0),
        ("hidden_size", 0),
        ("conv_kernel", 0),
        ("num_hidden_layers", -2),
        ("fast_decay_init", 0.9),
        ("fast_decay_init", 0.0),
        ("slow_decay_init", [0.85, 1.0]),
        ("slow_decay_init", [0.95, 0.85]),
        ("slow_decay_init", [0.85]),
    ],
)
def test_a_config_value_that_no_model_can_have_is_refused_by_field_and_value(field, value):
    with pytest.raises(ValueError) as caught:
        LAMConfig(**{field: value})
    assert field in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    "field, value",
    [("hidden_size", "64"), ("chunk_size", 4.5), ("cross_timescale", "strong"), ("num_hidden_layers", None)],
)
def test_a_config_value_of_the_wrong_type_is_refused_by_field_and_value(field, value):
    with pytest.raises(Exception) as caught:  # noqa: B017, RUF100 - its class is huggingface_hub's
        LAMConfig(**{field: value})
    assert field in str(caught.value)
    assert str(value) in str(caught.value)
