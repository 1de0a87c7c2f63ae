"""A GPT-2 classifier whose head reads other hidden states than GPT2ForSequenceClassification's does, or whose blocks
have no causal mask. Loaded by transformers with trust_remote_code=True; needs nothing else.

config.pooling        which hidden state the head reads: first, last, last_nonpad, or the mean of all
config.causal         false: every token sees every other
config.reads_padding  true: padding counts as tokens do, and every message is padded to config.width tokens where that
                      is a number, or else as it is given
Messages are padded on the right.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2Model, GPT2PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class TwoWaysConfig(GPT2Config):
    """GPT2Config with pooling, causal, reads_padding and width."""

    model_type = "two_ways_gpt2"


class TwoWaysForSequenceClassification(GPT2PreTrainedModel):
    """input_ids (B, T), attention_mask (B, T) -> logits (B, K)."""

    config_class = TwoWaysConfig

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = GPT2Model(config)
        self.score = nn.Linear(config.n_embd, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        """Raises ValueError for left padding, and for a message longer than the width."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
        if not real[:, 0].all():
            raise ValueError("this model reads messages that are padded on the right: use padding_side='right'")
        length = real.sum(1)  # (B,)
        ids = input_ids.masked_fill(real == 0, self.config.pad_token_id)
        if self.config.reads_padding:
            ids = self._widened(ids)
            real = torch.ones_like(ids)
        hidden = self.transformer(input_ids=ids, attention_mask=self._mask(real), use_cache=False).last_hidden_state
        logits = self.score(self._pooled(hidden, real, length))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _widened(self, ids):
        T, width = ids.shape[1], self.config.width or ids.shape[1]
        if width < T:
            raise ValueError(f"{T} tokens are more than the {width} of this model: give the tokenizer truncation=True")
        return F.pad(ids, (0, width - T), value=self.config.pad_token_id)

    def _mask(self, real):
        if self.config.causal:
            return torch.ones_like(real)  # what is behind a token is not seen, padding or not
        B, T = real.shape
        unseen = (real == 0)[:, None, None, :].expand(B, 1, T, T)
        return torch.zeros(B, 1, T, T, dtype=self.dtype, device=real.device).masked_fill(
            unseen, torch.finfo(self.dtype).min
        )

    def _pooled(self, hidden, real, length):
        if self.config.pooling == "mean":
            return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)  # (B, C)
        place = {
            "first": torch.zeros_like(length),
            "last": torch.full_like(length, hidden.shape[1] - 1),
            "last_nonpad": length - 1,
        }[self.config.pooling]
        return hidden[torch.arange(len(hidden), device=hidden.device), place]  # (B, C)
