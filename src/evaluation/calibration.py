"""Calibration: probabilities that say how often an answer is right, by temperature scaling (Guo et al. 2017).

softmax(logits / T), with the one T that gives validation the least negative log-likelihood
"""

import math
from collections.abc import Mapping
from typing import Any

from src.errors import InputError
from src.evaluation.metrics import Metrics, Predictions, measure_splits

SHOWN = ("ece", "loss")
LARGEST = 100.0  # temperature: log-probabilities so flat that the classes are equal


def temperature(validation: Predictions) -> float:
    """The temperature of least loss; 1 where every message is right: the less the better then, without an end."""
    from scipy.optimize import minimize_scalar

    log_p, labels = validation.log_probabilities.double(), validation.labels
    if not log_p.gather(1, labels[:, None])[:, 0].lt(log_p.amax(1)).any() or log_p.isnan().any():
        return 1.0

    def loss(log_inverse: float) -> float:
        return -(log_p * math.exp(log_inverse)).log_softmax(1).gather(1, labels[:, None]).mean().item()

    bound = math.log(LARGEST)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-8})
    return math.exp(-found.x)


def scaled(predictions: Predictions, temperature: float) -> Predictions:
    """Predictions with calibrated probabilities, which say the same: their threshold is scaled too."""
    log_p = (predictions.log_probabilities.double() / temperature).log_softmax(1)
    threshold = predictions.threshold and predictions.threshold / temperature
    return predictions._replace(log_probabilities=log_p.float(), threshold=threshold)


def summary(
    predictions: Mapping[str, Predictions], before: Mapping[str, Mapping[str, float]], tasks: Mapping[str, list[int]]
) -> dict[str, Any]:
    """What result.json says: the temperature, and calibration error and loss of validation and test `before` it, which
    are among their metrics, and after."""
    found = temperature(predictions["validation"])
    after: Metrics = measure_splits({part: scaled(one, found) for part, one in predictions.items()}, tasks)[0]
    return {"temperature": found} | {
        name: {part: {key: metrics[part][key] for key in SHOWN} for part in ("validation", "test")}
        for name, metrics in (("before", before), ("after", after))
    }


def recorded(result: Mapping[str, Any]) -> float:
    """The temperature that a run's result.json holds. Raises InputError where it has none."""
    if "calibration" not in result:
        raise InputError(f"calibrated=true: run {result['id']} is older than temperature scaling; train it anew")
    return float(result["calibration"]["temperature"])
