"""Importing the package: cheap, and AutoConfig and AutoModel know LAM in whatever order things are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lam_transformers

MODEL_IS_KNOWN = """
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("lam", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
assert type(config).__module__ == "lam_transformers.model.configuration_lam", type(config)
model = AutoModel.from_config(config)
assert type(model).__module__ == "lam_transformers.model.modeling_lam", type(model)
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
for auto in (AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification):
    assert type(auto.from_config(config)).__module__ == "lam_transformers.model.heads_lam", auto
config = AutoConfig.for_model(
    "lam_published", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
)
assert type(AutoModel.from_config(config)).__module__ == "lam_transformers.published.modeling_lam_published"
"""


def run_python(code: str) -> str:
    """Run code in a process of its own, which has imported nothing yet, and return what it prints."""
    path = os.pathsep.join([str(Path(lam_transformers.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_no_heavy_library_and_takes_no_time():
    code = """
import sys, time
began = time.perf_counter()
import lam_transformers
seconds = time.perf_counter() - began
heavy = {"torch", "transformers", "numpy", "safetensors", "accelerate", "sentence_transformers"} & set(sys.modules)
assert not heavy, heavy
assert "LAMModel" in dir(lam_transformers) and "LAMModel" in lam_transformers.__all__
assert not {"torch", "transformers"} & set(sys.modules)
print(seconds)
"""
    assert float(run_python(code)) < 0.5


# Each order needs a process that imports torch and transformers anew, some ten seconds; the two that differ most in
# what has been imported when LAM registers itself always run.
@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModel; import lam_transformers",
        "from lam_transformers import LAMModel",
        pytest.param("import lam_transformers", marks=pytest.mark.slow),
        pytest.param("import lam_transformers; from transformers import BertModel", marks=pytest.mark.slow),
        pytest.param("from lam_transformers import LAMPublishedModel", marks=pytest.mark.slow),
        pytest.param(
            "from lam_transformers.published.modeling_lam_published import LAMPublishedModel", marks=pytest.mark.slow
        ),
        pytest.param("from lam_transformers import LAMPublishedConfig", marks=pytest.mark.slow),
        pytest.param("import transformers; import lam_transformers", marks=pytest.mark.slow),
        pytest.param("from transformers import AutoConfig; import lam_transformers", marks=pytest.mark.slow),
        pytest.param("from lam_transformers.model.modeling_lam import LAMModel", marks=pytest.mark.slow),
        pytest.param("from lam_transformers import LAMConfig", marks=pytest.mark.slow),
        pytest.param("import lam_transformers; from transformers import Trainer", marks=pytest.mark.slow),
        pytest.param("import lam_transformers; import transformers.modeling_layers", marks=pytest.mark.slow),
        pytest.param("import lam_transformers; import sentence_transformers", marks=pytest.mark.slow),
    ],
)
def test_auto_classes_know_lam_in_whatever_order_things_are_imported(first):
    run_python(first + MODEL_IS_KNOWN)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'LAMDecoder'"):
        lam_transformers.LAMDecoder  # noqa: B018


def test_every_public_name_is_there():
    assert all(getattr(lam_transformers, name).__name__ == name for name in lam_transformers.__all__)
