"""Class probabilities and labels of a whole split -> its metrics, with torchmetrics.

accuracy, f1 (macro, over all classes: 0 for one without messages and answers), mcc (Matthews), auroc (macro, one
against the rest, by log-odds), ece (top-label calibration error in 15 bins), loss (mean negative
log-likelihood in nats). Of answers that were written: generated_accuracy, in which a text that is no answer counts as
wrong, and valid_rate, the share of those that are one.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
import torchmetrics.functional.classification as tm
from torch import Tensor

from src.ranks import gathered


def perplexity(loss: float) -> float:
    """That of a loss in nats; infinite beyond what a float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class Predictions(NamedTuple):
    """log_probabilities (N, K) in fp32 and labels (N,) of a split, in the split's order; of a model that writes its
    answers also what it `said` (N,), a class number or -1 for no answer."""

    log_probabilities: Tensor
    labels: Tensor
    said: Tensor | None = None

    def of(self, classes: list[int]) -> "Predictions":
        """Those of the messages whose label is among `classes`, over these classes alone."""
        number = torch.full((self.log_probabilities.shape[1] + 1,), -1)  # the last place is for -1
        number[classes] = torch.arange(len(classes))
        rows = number[self.labels] >= 0
        said = None if self.said is None else number[self.said[rows]]
        return Predictions(self.log_probabilities[rows][:, classes], number[self.labels[rows]], said)

    @property
    def probabilities(self) -> Tensor:
        return self.log_probabilities.exp()

    @property
    def predicted(self) -> Tensor:
        return self.log_probabilities.argmax(-1)


def predict(trainer: L.Trainer, model: L.LightningModule, loader: Any) -> Predictions:
    """Run `model` over a loader whose batches carry their rows, and put the predictions of all ranks into the order of
    the rows."""
    own: Any = trainer.predict(model, loader)
    return in_order(output for of_rank in gathered(own) for output in of_rank)


def in_order(outputs: Iterable[Any]) -> Predictions:
    """What predict_step gave for each batch -> predictions in the order of the rows."""
    row, logits, label, *said = (torch.cat(part) for part in zip(*outputs, strict=True))
    order = row.argsort()
    return Predictions(logits[order].float().log_softmax(-1), label[order], *(part[order] for part in said))


def measure(predictions: Predictions) -> dict[str, float]:
    """The metrics named above, over every example; a metric that needs a class which is absent is nan."""
    probabilities, labels = predictions.probabilities, predictions.labels
    k = probabilities.shape[1]
    ranked = len(labels.unique()) == k and not probabilities.isnan().any()
    metrics = {
        "accuracy": tm.multiclass_accuracy(predictions.predicted, labels, k, average="micro"),
        "f1": tm.multiclass_f1_score(predictions.predicted, labels, k, average="none").mean(),
        "mcc": matthews(confusion(predictions)),
        "auroc": tm.multiclass_auroc(ranks(predictions), labels, k) if ranked else torch.tensor(torch.nan),
        # a probability of exactly 1, which fp32 softmax gives, would get a bin of its own
        "ece": tm.multiclass_calibration_error(probabilities.clamp(max=1 - 1e-7), labels, k, n_bins=15),
        "loss": torch.nn.functional.nll_loss(predictions.log_probabilities, labels),
    }
    if predictions.said is not None:
        metrics["generated_accuracy"] = (predictions.said == labels).float().mean()
        metrics["valid_rate"] = (predictions.said >= 0).float().mean()
    return {name: value.item() for name, value in metrics.items()}


def ranks(predictions: Predictions) -> Tensor:
    """Each class's log-odds against the rest (N, K) as ranks in [0, 1]: fp32 has no probabilities between 1 - 6e-8 and
    1, where a trained model's lie, and torchmetrics takes what is no probability through a softmax."""
    log_p = predictions.log_probabilities.double()
    k = log_p.shape[1]
    rest = torch.stack([log_p[:, [j for j in range(k) if j != c]].logsumexp(1) for c in range(k)], 1)
    values, rank = (log_p - rest).unique(return_inverse=True)
    return rank.double() / max(1, len(values) - 1)


Metrics = dict[str, dict[str, float]]


def measure_splits(
    predictions: Mapping[str, Predictions], tasks: Mapping[str, list[int]]
) -> tuple[Metrics, dict[str, Metrics]]:
    """Metrics of each split, and of each task in it. Where there are tasks, a split's are the means over those that
    were trained: one that was left out has numbers of its own alone."""
    by_task = {part: measure_tasks(p, tasks) for part, p in predictions.items()} if tasks else {}
    if not by_task:
        return {part: measure(p) for part, p in predictions.items()}, {}
    return {part: mean([measured[name] for name in by_task["train"]]) for part, measured in by_task.items()}, by_task


def measure_tasks(predictions: Predictions, tasks: Mapping[str, list[int]]) -> Metrics:
    """`measure` of each task's messages over its own classes; a task without messages is left out."""
    return {name: measure(p) for name, classes in tasks.items() if len((p := predictions.of(classes)).labels)}


def mean(measured: Collection[dict[str, float]]) -> dict[str, float]:
    """The mean over tasks of each metric."""
    names = next(iter(measured))
    return {name: sum(metrics[name] for metrics in measured) / len(measured) for name in names}


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
