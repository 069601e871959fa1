"""A teacher that reads the token ids of a pool, which were made with another model's tokenizer."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from ...io.loading import locate_model

BASE = "all-MiniLM-L6-v2"
LARGE = "sentence-transformers/all-mpnet-base-v2"


@dataclass
class PoolTeacher:
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
        """Dimensions of its states, D."""
        config: Any = self.model.config
        return config.hidden_size

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last states [B, T, D] for the pool's ids [B, T] and mask [B, T] bool."""
        return self.model(input_ids=self._own(ids, mask), attention_mask=mask.long()).last_hidden_state

    def all_states(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The embeddings and every layer's states, [B, T, D] each."""
        own = self._own(ids, mask)
        return self.model(input_ids=own, attention_mask=mask.long(), output_hidden_states=True).hidden_states

    def _own(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The teacher's ids, [B, T]."""
        if self.table is None:
            return ids
        return torch.where(mask, self.table[ids], torch.full_like(ids, self.special["pad"]))


def vocabulary_map(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> torch.Tensor:
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


def load_teacher(name: str, device: torch.device, pool_base: str | None = None, half: bool = False) -> PoolTeacher:
    """A frozen teacher.

    Args:
        name: folder or Hub id.
        device: where it goes.
        pool_base: the model whose tokenizer the pool was written with, if the teacher has another one.
        half: bfloat16 weights on a GPU. Otherwise, and on a CPU, where such products may be ten times slower, float32.
    """
    path = locate_model(name)
    model = AutoModel.from_pretrained(path, dtype=torch.float32, add_pooling_layer=False, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    special = {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id, "pad": tokenizer.pad_token_id}
    table = None
    if pool_base is not None:
        own = AutoTokenizer.from_pretrained(locate_model(pool_base), trust_remote_code=False)
        table = vocabulary_map(own, tokenizer).to(device)
    dtype = torch.bfloat16 if half and device.type == "cuda" else torch.float32
    return PoolTeacher(model.to(device, dtype).eval().requires_grad_(False), table, special)
