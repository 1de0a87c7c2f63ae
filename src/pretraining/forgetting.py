"""What fine-tuning takes from the language model: its loss on held-out text, before and after.

Blocks and output layer are measured as they are: the token embedding, which `all` trains in either way, or the copy of
it that an instruct model's `last_layer` trains. A classifier's head stands beside the output layer and does not count.
"""

from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from src.evaluation.metrics import perplexity
from src.finetune.base import FineTuner
from src.pretraining.losses import chunked_cross_entropy


class CausalLMLoss(L.LightningModule):
    """Sums the loss of every next token of windows (B, T+1), by a fine-tuned GPT's blocks and output layer."""

    def __init__(self, tuner: FineTuner) -> None:
        super().__init__()
        self.tuner = tuner

    def predict_step(self, batch: Tensor, batch_index: int) -> tuple[float, int]:
        hidden, targets = self.tuner.gpt(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        return chunked_cross_entropy(hidden, self.tuner.vocabulary, targets).item() * len(targets), len(targets)


class Forgetting:
    """Measures `tuner` on windows of text (B, T+1) when made, and again when asked; without windows it does nothing."""

    def __init__(self, trainer: L.Trainer, tuner: FineTuner, windows: list[Tensor]) -> None:
        self.trainer, self.module, self.windows = trainer, CausalLMLoss(tuner), windows
        self.before = self._measure() if windows else None

    def facts(self) -> dict[str, Any]:
        """{"language": {"before", "after"}}, each with loss in nats a token, perplexity, and the number of tokens."""
        return {"language": {"before": self.before, "after": self._measure()}} if self.windows else {}

    def _measure(self) -> dict[str, float]:
        loader: Any = DataLoader(self.windows, batch_size=None)  # type: ignore[arg-type]
        outputs: Any = self.trainer.predict(self.module, loader)
        loss, tokens = (sum(part) for part in zip(*outputs, strict=True))
        return {"loss": loss / tokens, "perplexity": perplexity(loss / tokens), "tokens": tokens}
