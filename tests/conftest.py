"""Offline, with uninitialised memory full of NaN, a toy tokenizer and tiny models that were saved and loaded again."""

import gc
import os
import re
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Frameworks that count their users do so from the import on.
os.environ.update(HAYSTACK_TELEMETRY_ENABLED="False", ANONYMIZED_TELEMETRY="False", LANGSMITH_TRACING="false")

import handbook
import pytest
import torch

import lam_transformers

from .helpers import documented_code, perturb, random_ids

WORDS = """
    the is was in on and of to man woman dog cat child plays runs sleeps eats sings reads house street music guitar book
    river water red green old young quickly slowly
""".split()  # noqa: SIM905 - a list would stand in one word a line
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
GEOMETRY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
POSITIONS = 48


def pytest_collection(session):
    """What the test modules import is a million objects that live as long as the process: they are no garbage."""
    gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """Takes them out of the collector's sight: looking through them again and again took a third of the tests' time."""
    gc.freeze()
    gc.enable()


def pytest_configure(config):
    """Knows the marks of transformers' own tests (test_transformers_common.py)."""
    if source := os.environ.get("LAM_TRANSFORMERS_TESTS"):
        code = "".join(path.read_text(encoding="utf-8") for path in Path(source).glob("tests/*.py"))
        for name in {"generate", *re.findall(r"mark\.(\w+)", code)}:
            config.addinivalue_line("markers", f"{name}: transformers' own")


@pytest.fixture(scope="session", autouse=True)
def nan_in_uninitialised_memory():
    """torch.empty returns NaN: whoever reads memory that nobody wrote is found out."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tokenizer():
    """A toy uncased WordPiece tokenizer with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = special + list(LETTERS) + [f"##{x}" for x in LETTERS] + WORDS
    vocab = {piece: i for i, piece in enumerate(pieces)}
    toy = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    toy.normalizer = normalizers.BertNormalizer(lowercase=True)
    toy.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    toy.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=toy,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=10**9,
    )


@pytest.fixture(scope="session")
def tiny_config(tokenizer):
    def make(**changes):
        fields = {"vocab_size": len(tokenizer), "initializer_range": 0.1, "output_gate_rank": 8} | GEOMETRY
        return lam_transformers.LAMConfig(**(fields | {"position_table_size": POSITIONS} | changes))

    return make


@pytest.fixture(scope="session")
def make_model(tiny_config, tmp_path_factory):
    """A tiny model with all its parts awake, saved and loaded again; keyword arguments change its configuration."""

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("model")
        perturb(lam_transformers.LAMModel(tiny_config(**changes)), seed).save_pretrained(folder)
        return lam_transformers.LAMModel.from_pretrained(folder).eval()

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model):
    """Shared by all tests: whoever changes weights or modes asks `make_model` for another one."""
    return make_model()


@pytest.fixture
def ids(tiny_model):
    return random_ids(3, 21, vocab_size=tiny_model.config.vocab_size)


@pytest.fixture
def tiny_folder(tiny_model, tokenizer, tmp_path):
    """A folder with the tiny model and its tokenizer, fresh for each test."""
    folder = tmp_path / "tiny-lam"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tokenizer, tmp_path_factory):
    """A folder with a BERT of the tiny model's geometry and the toy tokenizer."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS, **GEOMETRY}
    config = BertConfig(initializer_range=0.1, **sizes)
    folder = tmp_path_factory.mktemp("tiny-bert")
    perturb(BertModel(config), 1, 0.05).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def fresh_accelerator():
    """Forgets accelerate's settings of this process, before and after the test and whenever it is called."""
    from accelerate.state import AcceleratorState

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)

    forget()
    yield forget
    forget()


@pytest.fixture(scope="session")
def trained_model():
    """Folder of the trained model (LAM_MODEL or LAM-base-v1) as a string."""
    return str(handbook.trained_model().resolve())


@pytest.fixture(scope="session")
def encoder(trained_model):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(trained_model, trust_remote_code=True)


@pytest.fixture
def run_documented(trained_model, tmp_path, monkeypatch, capsys):
    """Runs the code of a section of docs/INTEGRATIONS.md where LAM-base-v1 is the trained model; what it printed."""

    def run(section):
        (tmp_path / "LAM-base-v1").symlink_to(trained_model)
        monkeypatch.chdir(tmp_path)
        exec(compile(documented_code(section), f"docs/INTEGRATIONS.md, {section}", "exec"), {"__name__": "documented"})
        return capsys.readouterr().out

    return run
