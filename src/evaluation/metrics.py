"""Class probabilities and labels of a whole split -> its metrics, with torchmetrics.

accuracy, f1 (macro, over all classes: 0 for one without messages and answers), mcc (Matthews), auroc (macro, one
against the rest, by log-odds), average_precision and recall_at_p99, the highest recall with a precision of 0.99 or
more, by log-odds too (of two classes those of the positive one, else macro), ece (top-label calibration error in 15
bins), loss (mean negative log-likelihood in nats). Of answers that were written: generated_accuracy, in which a text
that is no answer counts as wrong, and valid_rate, the share of those that are one.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
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
    answers also what it `said` (N,), a class number or -1 for no answer.

    positive    of two classes the one that is looked for: 0, 1 or -1, the last
    threshold   the log-odds from which on it is predicted; None: where it is the more probable one
    """

    log_probabilities: Tensor
    labels: Tensor
    said: Tensor | None = None
    positive: int = -1
    threshold: float | None = None

    def of(self, classes: list[int]) -> "Predictions":
        """Those of the messages whose label is among `classes`, over these classes alone."""
        number = torch.full((self.log_probabilities.shape[1] + 1,), -1)  # the last place is for -1
        number[classes] = torch.arange(len(classes))
        rows = number[self.labels] >= 0
        said = None if self.said is None else number[self.said[rows]]
        own = self._replace(
            log_probabilities=self.log_probabilities[rows][:, classes], labels=number[self.labels[rows]]
        )
        return own._replace(said=said)

    @property
    def probabilities(self) -> Tensor:
        return self.log_probabilities.exp()

    @property
    def log_odds(self) -> Tensor:
        """Of each class against the rest, (N, K) in fp64: fp32 has no probabilities between 1 - 6e-8 and 1, where a
        trained model's lie."""
        log_p = self.log_probabilities.double()
        rest = [log_p[:, [j for j in range(log_p.shape[1]) if j != c]].logsumexp(1) for c in range(log_p.shape[1])]
        return log_p - torch.stack(rest, 1)

    @property
    def predicted(self) -> Tensor:
        if self.threshold is None:
            return self.log_probabilities.argmax(-1)
        is_positive = self.log_odds[:, self.positive] >= self.threshold
        return torch.where(is_positive, self.positive % 2, 1 - self.positive % 2)


def predict(trainer: L.Trainer, model: L.LightningModule, loader: Any) -> Predictions:
    """Run `model` over a loader whose batches carry their rows, and put the predictions of all ranks into the order of
    the rows."""
    own: Any = trainer.predict(model, loader)
    return in_order(output for of_rank in gathered(own) for output in of_rank)


def in_order(outputs: Iterable[Any]) -> Predictions:
    """What predict_step gave for each batch -> predictions in the order of the rows."""
    row, logits, label, *said = (torch.cat(part) for part in zip(*outputs, strict=True))
    order = row.argsort()
    return Predictions(logits[order].float().log_softmax(-1), label[order], said[0][order] if said else None)


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
        "average_precision": average_precision(predictions),
        "recall_at_p99": recall_at(0.99, predictions),
        # a probability of exactly 1, which fp32 softmax gives, would get a bin of its own
        "ece": tm.multiclass_calibration_error(probabilities.clamp(max=1 - 1e-7), labels, k, n_bins=15),
        "loss": torch.nn.functional.nll_loss(predictions.log_probabilities, labels),
    }
    if predictions.said is not None:
        metrics["generated_accuracy"] = (predictions.said == labels).float().mean()
        metrics["valid_rate"] = (predictions.said >= 0).float().mean()
    return {name: value.item() for name, value in metrics.items()}


def ranks(predictions: Predictions) -> Tensor:
    """Each class's log-odds (N, K) as ranks in [0, 1]: torchmetrics takes what is no probability through a softmax."""
    values, rank = predictions.log_odds.unique(return_inverse=True)
    return rank.double() / max(1, len(values) - 1)


def average_precision(predictions: Predictions) -> Tensor:
    """That of the positive class, or of more than two the mean over them; nan without messages of one."""
    return ranking(predictions, tm.binary_average_precision)


def recall_at(precision: float, predictions: Predictions) -> Tensor:
    """The highest recall with at least this precision, of the same classes; 0 where no threshold has it."""

    def highest(scores: Tensor, is_class: Tensor) -> Tensor:
        _, reached, recall = precision_recall(scores, is_class)
        return (recall * (reached >= precision)).max()

    return ranking(predictions, highest)


def precision_recall(scores: Tensor, is_class: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each score (T,), in ascending order: itself, and precision and recall where it is the threshold. In fp64, so
    that 7 of 10 are 0.7."""
    values, place = scores.unique(return_inverse=True)
    right, all_of_it = (torch.bincount(place, w).flip(0).cumsum(0).flip(0) for w in (is_class.double(), None))
    return values, right / all_of_it, right / is_class.sum()


def ranking(predictions: Predictions, metric: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A metric of ranks (N,) and whether each message is of the class (N,), as above."""
    scores, k = ranks(predictions), predictions.log_probabilities.shape[1]
    if predictions.log_probabilities.isnan().any() or len(predictions.labels.unique()) < k:
        return torch.tensor(torch.nan)
    classes = [predictions.positive % 2] if k == 2 else range(k)
    return torch.stack([metric(scores[:, c], (predictions.labels == c).long()) for c in classes]).mean()


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
