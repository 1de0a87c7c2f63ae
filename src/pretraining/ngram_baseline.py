"""What a language model should beat by far: a bigram model, counted on the training tokens.

    P(b|a) = (c(a, b) + alpha P1(b)) / (c(a) + alpha),    P1(b) = (c(b) + 1) / (N + V)

Interpolation after MacKay and Peto 1995. alpha is chosen on the held-out text itself, which favours the baseline.
"""

from typing import Any, NamedTuple

import numpy as np

Ids = np.ndarray[Any, Any]
ALPHAS = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)


class Bigram(NamedTuple):
    """Mean loss in nats of each held-out source and how many tokens it is the mean of; the alpha it was had with."""

    losses: dict[str, tuple[float, int]]
    alpha: float


def bigram(train: Ids, held_out: Ids, sources: dict[str, tuple[int, int]], vocab_size: int) -> Bigram:
    """Count on `train`, measure each source's range of `held_out`: every token but its first is predicted."""
    pairs = train[:-1] * np.int64(vocab_size) + train[1:]
    pairs.sort()
    before, single = np.bincount(train[:-1], minlength=vocab_size), np.bincount(train, minlength=vocab_size)
    single_probability = (single + 1) / (len(train) + vocab_size)

    counts = {}
    for name, (start, end) in sources.items():
        if end - start > 1:  # a lone token has none before it
            a, b = held_out[start : end - 1], held_out[start + 1 : end]
            counts[name] = _count(pairs, a * np.int64(vocab_size) + b), before[a], single_probability[b]
    losses = {
        alpha: {name: (_loss(*count, alpha), len(count[0])) for name, count in counts.items()} for alpha in ALPHAS
    }
    best = min(ALPHAS, key=lambda alpha: sum(loss * tokens for loss, tokens in losses[alpha].values()))
    return Bigram(losses[best], best)


def _count(pairs: Ids, wanted: Ids) -> Ids:
    """How often each of `wanted` stands in the sorted `pairs`."""
    return np.searchsorted(pairs, wanted, "right") - np.searchsorted(pairs, wanted, "left")


def _loss(pair: Ids, before: Ids, single_probability: Ids, alpha: float) -> float:
    return -float(np.log((pair + alpha * single_probability) / (before + alpha)).mean())
