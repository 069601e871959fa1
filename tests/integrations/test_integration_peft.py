"""LoRA by peft: every adapter trains, merging changes nothing, the base loads again with its adapter."""

import pytest
import torch

from lam_transformers import LAMModel

from ..helpers import assert_close_rms, hidden, make_mask, require

require("peft", "peft")
import peft
from peft import LoraConfig, PeftModel, get_peft_model

TARGETS = [["in_proj", "out_proj"], "all-linear", ["in_proj"], r".*\.memory\.(in_proj|out_proj)"]


def train(model, ids, mask, steps=3):
    """A few steps away from the start; the names of the parameters that never had a gradient."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    still = set(trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-2)
    for _ in range(steps):
        # Squares would do nothing: the norm of what a LayerNorm gives hardly changes.
        y = model(input_ids=ids, attention_mask=mask).last_hidden_state
        loss = (y * torch.linspace(-1, 1, y.shape[-1])).sum(-1).sin().mean()
        optimizer.zero_grad()
        loss.backward()
        still -= {name for name, p in trained.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
    return still


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_every_adapter_trains_and_merging_changes_nothing(make_model, ids, targets, tmp_path):
    mask = make_mask("left")
    base = make_model()
    before = hidden(base, ids, attention_mask=mask)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    adapters = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(adapters) >= 4
    assert not train(model, ids, mask)
    model.eval()
    want = hidden(model, ids, attention_mask=mask)
    assert (want - before).abs().max() > 0.05
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(make_model(), tmp_path / "adapter").eval()
    assert_close_rms("loaded again", hidden(again, ids, attention_mask=mask), want, 1e-6)
    with model.disable_adapter():
        assert_close_rms("without the adapter", hidden(model, ids, attention_mask=mask), before, 1e-5)
    merged = model.merge_and_unload()
    assert type(merged) is LAMModel
    assert_close_rms("merged", hidden(merged, ids, attention_mask=mask), want, 1e-5)
    assert merged.backend == make_model().backend


def test_a_merged_model_is_saved_and_loaded_as_any(make_model, ids, tmp_path):
    model = get_peft_model(make_model(), LoraConfig(r=4, target_modules=["in_proj", "out_proj"]))
    assert not train(model, ids, torch.ones_like(ids))
    merged = model.eval().merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = LAMModel.from_pretrained(tmp_path / "merged").eval()
    assert_close_rms("loaded again", hidden(again, ids), hidden(merged, ids), 1e-6)


def refused_by_transformers() -> str | None:
    """Why transformers' own `add_adapter` does not take the installed peft, where it does not: 5.24 asks for 0.22."""
    from transformers.integrations.peft import MIN_PEFT_VERSION
    from transformers.utils.peft_utils import check_peft_version

    try:
        check_peft_version(min_version=MIN_PEFT_VERSION)
    except ValueError as error:
        return f"{error} (peft {peft.__version__})"
    return None


def test_sentence_transformers_own_adapters(tiny_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    from lam_transformers.checkpoints.export import export_model

    if reason := refused_by_transformers():
        pytest.skip(reason)
    export_model(tiny_folder, tmp_path / "exported")
    encoder = SentenceTransformer(str(tmp_path / "exported"), trust_remote_code=True, device="cpu")
    lam = encoder[0].model
    lam.add_adapter(LoraConfig(r=4, target_modules=["in_proj", "out_proj"], init_lora_weights=False))
    assert encoder.encode(["the dog sleeps in the house"]).shape == (1, 64)


def test_documented_code(run_documented):
    kind, cosine = run_documented("PEFT").split()[-2:]
    assert kind == "LAMModel"
    assert float(cosine) > 0
