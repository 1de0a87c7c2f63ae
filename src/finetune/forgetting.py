"""What fine-tuning takes from the language model: its loss on held-out text, before and after.

The body is measured with the output layer that the GPT started with, so that training the embedding, or swapping the
output layer for a head, does not count as forgetting.
"""

import math
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from src.finetune.language import chunked_cross_entropy
from src.gpt.model import GPT


class LanguageLoss(L.LightningModule):
    """Sums the loss of every next token of windows (B, T+1), by the GPT's blocks as they are and the output layer kept
    from when this was made."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt
        self.output: Tensor
        self.register_buffer("output", gpt.token_embedding.weight.detach().clone(), persistent=False)

    def predict_step(self, batch: Tensor, batch_index: int) -> tuple[float, int]:
        hidden, targets = self.gpt(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        return chunked_cross_entropy(hidden, self.output, targets).item() * len(targets), len(targets)


class Forgetting:
    """Measures `gpt` on windows of text (B, T+1) when made, and again when asked; without windows it does nothing."""

    def __init__(self, trainer: L.Trainer, gpt: GPT, windows: list[Tensor]) -> None:
        self.trainer, self.module, self.windows = trainer, LanguageLoss(gpt), windows
        self.before = self._measure() if windows else None

    def facts(self) -> dict[str, Any]:
        """{"language": {"before", "after"}}, each with loss in nats a token, perplexity, and the number of tokens."""
        return {"language": {"before": self.before, "after": self._measure()}} if self.windows else {}

    def _measure(self) -> dict[str, float]:
        loader: Any = DataLoader(self.windows, batch_size=None)  # type: ignore[arg-type]
        outputs: Any = self.trainer.predict(self.module, loader)
        loss, tokens = (sum(part) for part in zip(*outputs, strict=True))
        return {"loss": loss / tokens, "perplexity": math.exp(loss / tokens), "tokens": tokens}
