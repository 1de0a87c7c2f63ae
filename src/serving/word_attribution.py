"""Which words moved an answer: each is left out in turn, and the change in the answer's log-odds is its share.

After Li, Monroe and Jurafsky 2016, "Understanding Neural Networks through Representation Erasure" (arXiv 1612.08220),
with words in place of dimensions, and log-odds, which still tell probabilities near 1 apart.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

MOST = 32  # pieces that are left out in turn; of a longer message, several words are one
STRENGTHS = 4
TINY = 1e-38


class Piece(NamedTuple):
    """A part of a message; by how much it moved the log-odds, and how strongly it is shown, -4 to 4."""

    text: str
    moved: float = 0.0
    strength: int = 0


def pieces(text: str) -> list[str]:
    """A message in at most MOST pieces of whole words, each with the white space around it."""
    words = re.findall(r"^\s*\S+\s*|\S+\s*", text)
    each = math.ceil(len(words) / MOST) or 1
    return ["".join(words[start : start + each]) for start in range(0, len(words), each)]


def without_each(parts: Sequence[str]) -> list[str]:
    """The message without each of its pieces; nothing where it has only one."""
    return ["".join([*parts[:i], *parts[i + 1 :]]) for i in range(len(parts))] if len(parts) > 1 else []


def moved(parts: Sequence[str], answers: Sequence[dict[str, Any]]) -> list[Piece]:
    """Pieces with their shares, from the answers to the whole message and to it without each of them."""
    whole, *others = answers
    if not others:
        return [Piece(part) for part in parts]
    label = whole["label"]
    shares = [log_odds(whole, label) - log_odds(other, label) for other in others]
    most = max(map(abs, shares)) or 1.0
    return [Piece(part, share, round(STRENGTHS * share / most)) for part, share in zip(parts, shares, strict=True)]


def log_odds(answer: dict[str, Any], label: str) -> float:
    """log p / (1 - p) of a label, 1 - p being the sum of the others: it stays exact where p is 1 in fp32."""
    p = answer["probabilities"][label]
    others = sum(q for name, q in answer["probabilities"].items() if name != label)
    return math.log(max(p, TINY)) - math.log(max(others, TINY))
