"""transformers' own tests of every model, on LAM: `LAM_TRANSFORMERS_TESTS=DIR` with a source tree of transformers.

DIR is the root of the source of the transformers that is installed (its sdist, or a checkout of its tag), with the
folder `tests` in it. What of them matters here is also in test_transformers_habits.py, which needs no such tree.
"""

import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers

from lam_transformers import LAMConfig, LAMModel

SOURCE = os.environ.get("LAM_TRANSFORMERS_TESTS")
if not SOURCE:
    pytest.skip("LAM_TRANSFORMERS_TESTS names no source tree of transformers", allow_module_level=True)
pytest.importorskip("parameterized", reason="transformers' tests need the package parameterized")


def transformers_tests(name: str):
    """A module of the tree's `tests`, as part of a package that is not called as ours is."""
    folder, package = Path(SOURCE) / "tests", "transformers_tests"
    if package not in sys.modules:
        root = types.ModuleType(package)
        root.__path__ = [str(folder)]
        sys.modules[package] = root
        # An sdist lacks these two; they add tests of generation and of the exporters.
        for module, mixin, file in (
            ("exporters.test_export", "ExportTesterMixin", "exporters/test_export.py"),
            ("generation.test_utils", "GenerationTesterMixin", "generation/test_utils.py"),
            ("utils.test_configuration_utils", "config_common_kwargs", "utils/test_configuration_utils.py"),
        ):
            if not (folder / file).exists():
                parent = types.ModuleType(f"{package}.{module.split('.')[0]}")
                parent.__path__ = []
                stub = types.ModuleType(f"{package}.{module}")
                setattr(stub, mixin, {} if mixin.islower() else type(mixin, (), {}))
                sys.modules[parent.__name__], sys.modules[stub.__name__] = parent, stub
    # The tree's own `tests` would be imported as if it were transformers.
    with mock.patch("transformers.utils.direct_transformers_import", lambda _: transformers):
        return importlib.import_module(f"{package}.{name}")


modeling = transformers_tests("test_modeling_common")
configuration = transformers_tests("test_configuration_common")


class LAMModelTester:
    batch_size, seq_length = 13, 7

    def __init__(self, parent):
        # An encoder without a head has no loss: what trains is tested with the heads and in test_modeling.py.
        self.parent, self.is_training = parent, False
        self.hidden_size, self.num_hidden_layers, self.vocab_size = 64, 2, 99

    def get_config(self):
        return LAMConfig(
            vocab_size=self.vocab_size, hidden_size=self.hidden_size, num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=2, intermediate_size=37, position_table_size=512, type_vocab_size=16,
            output_gate_rank=8, pad_token_id=0,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        ids = modeling.ids_tensor(shape, self.vocab_size)
        inputs = {"input_ids": ids, "attention_mask": modeling.random_attention_mask(shape)}
        return self.get_config(), inputs


class TestLAM(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LAMModel,)
    has_attentions = False
    test_resize_embeddings = True

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = LAMModelTester(self)
        self.config_tester = configuration.ConfigTester(
            self, config_class=LAMConfig, hidden_size=64, num_attention_heads=2
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("LAM refuses weights that lack some of its own, it does not make them up (test_modeling.py)")
    def test_can_init_all_missing_weights(self):
        pass

    @unittest.skip("LAM refuses weights that lack some of its own, it does not make them up (test_modeling.py)")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass
