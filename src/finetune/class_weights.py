"""Class weights: how much a message counts in the loss by its class, where some classes are rare."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from src.data.prompts import Question
from src.errors import InputError

ClassWeights = Literal["none", "balanced"] | list[float]


def check_class_weights(weights: ClassWeights, questions: Sequence[Question]) -> None:
    """Raises InputError for weights that the classes of these questions cannot have."""
    if weights == "none":
        return
    if len(questions) > 1:
        raise InputError(f"task.class_weights={weights} is for one question, and a mixture asks several: leave it out")
    labels = questions[0].labels
    if isinstance(weights, list) and (len(weights) != len(labels) or min(weights) <= 0):
        raise InputError(
            f"task.class_weights={weights} must be a number above 0 for each of the classes {', '.join(labels)}"
        )


def class_weight(weights: ClassWeights, labels: Sequence[int], n_classes: int) -> Tensor | None:
    """The weight of each class (K,) from the labels of the training messages; None where all are alike. balanced:
    N / (K n), where n of the N messages are of the class, so that the mean message has a weight of 1."""
    if weights == "none":
        return None
    if weights == "balanced":
        return len(labels) / (n_classes * torch.bincount(torch.tensor(labels), minlength=n_classes).float())
    return torch.tensor(weights, dtype=torch.float32)
