# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""Heads on a LAM: classes for a text, classes for each token, and the words at masked places.

A token's state knows the tokens before it and, where the model reads two ways (`two_way_chunk`), the rest of its own
chunk.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_lam import LAMConfig
from .modeling_lam import LAMModel, LAMModelOutput, LAMPreTrainedModel

if TYPE_CHECKING:
    # Out of a folder, transformers 5.4 copies only those files that the one it was asked for names itself.
    from .checks_lam import check_is_lam  # noqa: F401
    from .delta_rule_lam import dual_delta_rule  # noqa: F401
    from .memory_lam import LAMMemory  # noqa: F401
    from .packing_lam import PackedTexts  # noqa: F401
    from .state_lam import LAMState  # noqa: F401

# Where a folder's auto classes find the code: written to config.json whichever of the classes is saved.
AUTO_MAP = {
    "AutoConfig": "configuration_lam.LAMConfig",
    "AutoModel": "modeling_lam.LAMModel",
    "AutoModelForMaskedLM": "heads_lam.LAMForMaskedLM",
    "AutoModelForSequenceClassification": "heads_lam.LAMForSequenceClassification",
    "AutoModelForTokenClassification": "heads_lam.LAMForTokenClassification",
}
_STATES = ("cache", "cache_params", "past_key_values", "use_cache")


class LAMPredictionHead(nn.Module):
    """LayerNorm(act(W x)) before the classifier or the decoder, as BERT's transform."""

    def __init__(self, config: LAMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [..., D] -> [..., D]."""
        return self.norm(self.act(self.dense(x)))


class LAMWithHead(LAMPreTrainedModel):
    """The encoder `lam` and what all heads share.

    `forward` takes what `LAMModel.forward` does, other than a state: what was read before could not be pooled, and the
    outputs have no place for what comes after. `model.lam` reads texts in segments.
    """

    def __init__(self, config: LAMConfig) -> None:
        super().__init__(config)
        self.lam = LAMModel(config)
        self.head = LAMPredictionHead(config)

    def encode(self, **inputs: Any) -> LAMModelOutput:
        """What `self.lam` gives for these arguments of its forward. Raises ValueError for a state among them."""
        if given := [name for name in _STATES if inputs.get(name) is not None and inputs[name] is not False]:
            raise ValueError(
                f"{type(self).__name__} reads whole texts: leave {', '.join(given)} out, or give it to model.lam."
            )
        return self.lam(**inputs, return_dict=True)


class LAMForSequenceClassification(LAMWithHead):
    """Classes or scores of whole texts or pairs of texts.

    With one label its loss is the squared error, with several the cross-entropy of integer labels or the binary one of
    float labels; `config.problem_type` decides otherwise.
    """

    # The loss is a mean over the batch: Trainer then divides by the number of batches that it accumulates.
    accepts_loss_kwargs = False

    def __init__(self, config: LAMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        r"""Logits of each text, and their loss where labels are given.

        Args:
            input_ids: as `LAMModel.forward`, like all that follow but `labels`.
            attention_mask: see there.
            token_type_ids: see there.
            position_ids: see there.
            inputs_embeds: see there.
            labels: [B] integers or floats, or [B, num_labels] floats.
            kwargs: see there.

        Returns:
            `SequenceClassifierOutput` with logits [B, num_labels].

        Raises:
            ValueError: as `LAMModel.forward`, and for a packed row.
        """
        if kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError(
                "LAMForSequenceClassification takes one text a row: give attention_mask, not cu_seq_lens_q."
            )
        output = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        pooled = pool(output.last_hidden_state, attention_mask, self.config.classifier_pooling)
        logits = self.classifier(self.dropout(self.head(pooled)))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


class LAMForTokenClassification(LAMWithHead):
    """A class for each token."""

    def __init__(self, config: LAMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        r"""Logits of each token, and their loss where labels are given.

        Args:
            input_ids: as `LAMModel.forward`, like all that follow but `labels` and `num_items_in_batch`.
            attention_mask: see there.
            token_type_ids: see there.
            position_ids: see there.
            inputs_embeds: see there.
            labels: [B, T] integers, -100 where a token has none.
            num_items_in_batch: what the sum of the tokens' losses is divided by, for batches that are accumulated; the
                number of labels here if not given.
            kwargs: see there.

        Returns:
            `TokenClassifierOutput` with logits [B, T, num_labels].
        """
        output = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.classifier(self.dropout(self.head(output.last_hidden_state)))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


class LAMForMaskedLM(LAMWithHead):
    """The words at masked places. The decoder's weight is that of the word embeddings."""

    _tied_weights_keys = {"decoder.weight": "lam.embeddings.word_embeddings.weight"}

    def __init__(self, config: LAMConfig) -> None:
        config.tie_word_embeddings = True  # folders of an encoder alone say False, which means nothing there
        super().__init__(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The decoder, whose weight is tied to the word embeddings."""
        return self.decoder

    def set_output_embeddings(self, value: Any) -> None:
        """Replace the decoder."""
        self.decoder = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        r"""Logits of each token over the vocabulary, and their loss where labels are given.

        Args:
            input_ids: as `LAMModel.forward`, like all that follow but `labels` and `num_items_in_batch`.
            attention_mask: see there.
            token_type_ids: see there.
            position_ids: see there.
            inputs_embeds: see there.
            labels: [B, T] token ids, -100 where nothing is to be predicted.
            num_items_in_batch: as in `LAMForTokenClassification.forward`.
            kwargs: see there.

        Returns:
            `MaskedLMOutput` with logits [B, T, vocab_size].
        """
        output = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.decoder(self.head(output.last_hidden_state))
        loss = None
        if labels is not None:
            vocabulary = self.config.vocab_size
            loss = self.loss_function(logits, labels, vocabulary, num_items_in_batch=num_items_in_batch)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


def pool(states: torch.Tensor, attention_mask: torch.Tensor | None, mode: str) -> torch.Tensor:
    """States [B, T, D] -> [B, D]: the mean over the real tokens of each row, or the state of the last of them.

    states: zero where attention_mask [B, T] is.
    """
    if attention_mask is None:
        return states[:, -1] if mode == "lasttoken" else states.mean(1)
    real = attention_mask.to(states.device)
    if mode == "lasttoken":
        places = torch.arange(1, states.shape[1] + 1, device=states.device)
        return states[torch.arange(len(states), device=states.device), (real * places).argmax(1)]
    return (states.float().sum(1) / real.sum(1, keepdim=True)).to(states.dtype)


LAMForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
LAMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
LAMForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")

__all__ = ["LAMForMaskedLM", "LAMForSequenceClassification", "LAMForTokenClassification"]
