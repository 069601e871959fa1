"""What is no tensor, or none of integers, is named."""

import pytest
import torch

from lam_transformers.published.checks_lam_published import check_ids, real_tokens


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "token_type_ids", "position_ids", "cu_seq_lens_q"])
def test_lists_in_the_place_of_tensors_are_named(tiny_model, name):
    given = {"input_ids": torch.ones(1, 3, dtype=torch.long), name: [[1, 1, 1]]}
    with pytest.raises(ValueError, match=f"{name} must be a tensor, got list"):
        tiny_model(**given)
    with pytest.raises(ValueError, match="inputs_embeds must be a tensor, got list"):
        tiny_model(inputs_embeds=[[[1.0]]])


def test_ids_that_are_no_integers_are_named(tiny_model):
    with pytest.raises(ValueError, match=r"input_ids must hold integers \(torch.long\), got torch.float32"):
        tiny_model(torch.ones(1, 3))


def test_a_published_model_wants_tensors_too():
    with pytest.raises(ValueError, match="input_ids must be a tensor, got list"):
        check_ids("input_ids", [[1]], 5)
    with pytest.raises(ValueError, match="attention_mask must be a tensor, got list"):
        real_tokens([[1]], torch.ones(1, 1, dtype=torch.long))
