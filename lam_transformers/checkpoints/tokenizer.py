"""The tokenizer of a model folder: read from what people have, written without truncation and padding."""

import os
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..model.checks_lam import check_regular, read_json

UNBOUNDED = int(1e30)  # what transformers itself writes for "no limit"
BERT_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
FILES = ("tokenizer.json", "vocab.txt")


def write_tokenizer(
    backend: Tokenizer, special: dict[str, str], folder: str | os.PathLike[str], max_length: int = UNBOUNDED
) -> None:
    """Save a tokenizer without fixed truncation and fixed padding.

    It becomes a plain `PreTrainedTokenizerFast`: a BertTokenizer whose tokenizer.json is missing would load with an
    empty vocabulary and give wrong ids without a word, this class refuses.

    Args:
        backend: changed in place: whatever truncation or padding it has fixed is taken off.
        special: "unk_token" and so on -> token.
        folder: where to.
        max_length: tokens after which `truncation=True` cuts.
    """
    backend.no_truncation()
    backend.no_padding()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_length, **special)
    tokenizer.save_pretrained(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that `read_tokenizer` can read."""
    return any((folder / name).is_file() for name in FILES)


def read_tokenizer(source: str | os.PathLike[str]) -> Tokenizer:
    """A BERT tokenizer from a folder, a tokenizer.json, a vocab.txt or a Hub id. No code of a folder is run.

    Raises:
        OSError: if there is no tokenizer or its file is damaged.
        ValueError: if it has no [PAD], [UNK], [CLS] or [SEP].
    """
    path = Path(source)
    if path.is_dir():
        files = [path / name for name in FILES if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"{path} has neither {' nor '.join(FILES)}.")
        path = files[0]
    if path.exists():
        check_regular(path)
    if not path.is_file():
        backend = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False).backend_tokenizer
    elif path.suffix == ".txt":
        backend = _from_vocabulary(path)
    else:
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise OSError(f"{path} is damaged or no tokenizer.json ({error}).") from error
    if missing := [x for x in list(BERT_SPECIAL.values())[:4] if backend.token_to_id(x) is None]:
        raise ValueError(f"The tokenizer of {source} has no {', '.join(missing)}; it is not a BERT's.")
    return backend


def _from_vocabulary(path: Path) -> Tokenizer:
    """BERT's WordPiece over a vocab.txt; lower case unless a tokenizer_config.json beside it says otherwise."""
    try:
        pieces = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is damaged or no vocabulary ({error}).") from error
    settings = path.with_name("tokenizer_config.json")
    lower = read_json(settings).get("do_lower_case", True) if settings.is_file() else True
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=bool(lower))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([x for x in BERT_SPECIAL.values() if x in vocab])
    if "[CLS]" in vocab and "[SEP]" in vocab:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(x, vocab[x]) for x in ("[CLS]", "[SEP]")],
        )
    return backend
