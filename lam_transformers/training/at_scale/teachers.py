"""What the teachers say about the pool, computed once before a run.

    python -m lam_transformers.training.at_scale.teachers --data POOL --out TEACHERS

Two teachers: the base model, from which the student also starts (all-MiniLM-L6-v2), and a larger one
(all-mpnet-base-v2). Files of the folder TEACHERS:
    base.pt [texts, D], large.pt [texts, D']: embeddings, float16.
    clusters.pt [texts]: number of a text's cluster; near numbers are near clusters.
    mined.pt: queries [Q] and, for each, 64 near documents [Q, 64], the nearest first.
    near.pt: pairs i, j of near and of random texts with the score that a cross-encoder gives them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from ...io.loading import locate_model
from .cross_encoder import CrossEncoderSettings, label_near_pairs
from .mining import Mixture, cluster_texts, mine_documents
from .texts import Pool, embed, say

BASE = "all-MiniLM-L6-v2"
LARGE = "sentence-transformers/all-mpnet-base-v2"


@dataclass
class Teacher:
    """An encoder that reads the pool's token ids.

    Attributes:
        model: of transformers, frozen.
        table: [vocabulary of the pool], the teacher's id of each of the pool's tokens; None: the same ids.
        special: the teacher's ids of "cls", "sep" and "pad".
    """

    model: torch.nn.Module
    table: torch.Tensor | None
    special: dict[str, int]

    @property
    def width(self) -> int:
        config: Any = self.model.config
        return config.hidden_size

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last states [B, T, D] for the pool's ids [B, T] and mask [B, T] bool."""
        return self.model(input_ids=self._own(ids, mask), attention_mask=mask.long()).last_hidden_state

    def all_states(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The embeddings and every layer's states, [B, T, D] each."""
        own = self._own(ids, mask)
        return self.model(input_ids=own, attention_mask=mask.long(), output_hidden_states=True).hidden_states

    def _own(self, ids, mask):
        if self.table is None:
            return ids
        return torch.where(mask, self.table[ids], torch.full_like(ids, self.special["pad"]))


def vocabulary_map(tokenizer, other) -> torch.Tensor:
    """The id in `other` of every token of `tokenizer`, [vocabulary] int64.

    Both are BERT's word pieces with other numbers and other names of the special tokens; a token that `other` lacks
    becomes its unknown token.
    """
    roles = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
    names = {getattr(tokenizer, role): getattr(other, role) for role in roles}
    vocabulary = tokenizer.get_vocab()
    known = other.get_vocab()
    table = torch.full((max(vocabulary.values()) + 1,), known[other.unk_token], dtype=torch.long)
    for token, number in vocabulary.items():
        name = names.get(token, token)
        if name in known:
            table[number] = known[name]
    return table


def load_teacher(name: str, device: torch.device, pool_base: str | None = None) -> Teacher:
    """A frozen teacher in float32.

    Args:
        name: folder or Hub id.
        device: where it goes.
        pool_base: the model whose tokenizer the pool was written with, if the teacher has another one.
    """
    path = locate_model(name)
    model = AutoModel.from_pretrained(path, dtype=torch.float32, add_pooling_layer=False, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    special = {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id, "pad": tokenizer.pad_token_id}
    table = None
    if pool_base is not None:
        own = AutoTokenizer.from_pretrained(locate_model(pool_base), trust_remote_code=False)
        table = vocabulary_map(own, tokenizer).to(device)
    return Teacher(model.to(device).eval().requires_grad_(False), table, special)


def write_teachers(
    data: Path,
    out: Path,
    base: str,
    large: str,
    settings: CrossEncoderSettings,
    device: torch.device,
    limit: int | None = None,
) -> None:
    """Write the folder `out` for the pool `data`. limit: use only the first so many texts."""
    out.mkdir(parents=True, exist_ok=True)
    pool = Pool(data, device, limit)
    base_teacher = load_teacher(base, device)
    base_teacher.model.bfloat16()
    large_teacher = load_teacher(large, device, pool_base=base)
    large_teacher.model.bfloat16()
    base_embeddings = embed(base_teacher, pool.texts, base_teacher.width)
    large_embeddings = embed(large_teacher, pool.texts, large_teacher.width)
    torch.save(base_embeddings.cpu(), out / "base.pt")
    torch.save(large_embeddings.cpu(), out / "large.pt")
    say("embeddings of", len(pool), "texts")
    mixture = Mixture(base_embeddings, large_embeddings)
    torch.save(cluster_texts(mixture).int().cpu(), out / "clusters.pt")
    say("clusters")
    queries, near = mine_documents(pool, mixture)
    torch.save({"queries": queries.cpu(), "near": near.cpu()}, out / "mined.pt")
    say("documents for", len(queries), "queries")
    first, second, score = label_near_pairs(pool, mixture, large_teacher, settings)
    torch.save({"i": first, "j": second, "score": score}, out / "near.pt")
    say("scores of", len(first), "pairs")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compute what the teachers say about a pool.")
    parser.add_argument("--data", type=Path, required=True, help="the pool")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--base", default=BASE, help="first teacher; its tokenizer is the pool's")
    parser.add_argument("--large", default=LARGE, help="second teacher")
    parser.add_argument("--limit", type=int, default=None, help="use only the first so many texts")
    settings = CrossEncoderSettings()
    parser.add_argument("--near-pairs", type=int, default=settings.near_pairs, help="pairs that get a score")
    parser.add_argument("--nli-pairs", type=int, default=settings.nli_pairs)
    parser.add_argument("--random-pairs", type=int, default=settings.random_pairs)
    parser.add_argument("--stsb-epochs", type=int, default=settings.stsb_epochs)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    settings = CrossEncoderSettings(
        near_pairs=options.near_pairs,
        nli_pairs=options.nli_pairs,
        random_pairs=options.random_pairs,
        stsb_epochs=options.stsb_epochs,
    )
    device = torch.device(options.device)
    write_teachers(options.data, options.out, options.base, options.large, settings, device, options.limit)


if __name__ == "__main__":
    main()
