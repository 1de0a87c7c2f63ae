"""Class probabilities and labels of a whole split -> its metrics, with torchmetrics.

accuracy, f1 (macro), mcc (Matthews), auroc (macro, one against the rest), ece (top-label calibration error in 15 bins),
loss (mean negative log-likelihood in nats).
"""

from typing import Any, NamedTuple

import lightning as L
import torch
import torchmetrics.functional.classification as tm
from torch import Tensor


class Predictions(NamedTuple):
    """log_probabilities (N, K) in fp32 and labels (N,) of a split, in the split's order."""

    log_probabilities: Tensor
    labels: Tensor

    @property
    def probabilities(self) -> Tensor:
        return self.log_probabilities.exp()

    @property
    def predicted(self) -> Tensor:
        return self.log_probabilities.argmax(-1)


def predict(trainer: L.Trainer, model: L.LightningModule, loader: Any) -> Predictions:
    """Run `model` over a loader whose batches carry their rows, and put the predictions into the order of the rows."""
    outputs: Any = trainer.predict(model, loader)
    row, logits, label = (torch.cat(part) for part in zip(*outputs, strict=True))
    order = row.argsort()
    return Predictions(logits[order].float().log_softmax(-1), label[order])


def measure(predictions: Predictions) -> dict[str, float]:
    """The metrics named above, over every example; a metric that needs a class which is absent is nan."""
    probabilities, labels = predictions.probabilities, predictions.labels
    k = probabilities.shape[1]
    all_classes = len(labels.unique()) == k
    metrics = {
        "accuracy": tm.multiclass_accuracy(predictions.predicted, labels, k, average="micro"),
        "f1": tm.multiclass_f1_score(predictions.predicted, labels, k, average="macro"),
        "mcc": matthews(confusion(predictions)),
        "auroc": tm.multiclass_auroc(probabilities, labels, k) if all_classes else torch.tensor(torch.nan),
        # a probability of exactly 1, which fp32 softmax gives, would get a bin of its own
        "ece": tm.multiclass_calibration_error(probabilities.clamp(max=1 - 1e-7), labels, k, n_bins=15),
        "loss": torch.nn.functional.nll_loss(predictions.log_probabilities, labels),
    }
    return {name: value.item() for name, value in metrics.items()}


def matthews(counts: Tensor) -> Tensor:
    """Matthews' correlation (Gorodkin 2004) of a confusion matrix, 0 where answers or labels are constant, as
    scikit-learn has it; torchmetrics 1.9 gives 0.58 for "always ham" on [ham, spam, ham, ham]."""
    c = counts.double()
    n, right, true, said = c.sum(), c.trace(), c.sum(1), c.sum(0)
    scale = ((n * n - said @ said) * (n * n - true @ true)).sqrt()
    return (right * n - true @ said) / scale if scale > 0 else scale


def confusion(predictions: Predictions) -> Tensor:
    """Counts (K, K): row the true class, column the predicted one."""
    k = predictions.log_probabilities.shape[1]
    return tm.multiclass_confusion_matrix(predictions.predicted, predictions.labels, k)
