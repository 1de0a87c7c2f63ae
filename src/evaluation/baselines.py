"""Models that are no GPT: texts and class numbers -> log-probabilities of the classes. What a GPT has to beat.

Majority        how often each class stood in training
TfidfLogistic   TF-IDF of n-grams of words or characters, and logistic regression
NBSVM           naive Bayes log-count ratios as features of a linear SVM (Wang and Manning 2012)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from src.errors import InputError
from src.evaluation.metrics import Predictions

MORE_THAN_ENOUGH = 10_000  # iterations of a solver, which ends by its tolerance


@runtime_checkable
class TextClassifier(Protocol):
    """A model without a GPT. Classes are numbered 0 to K - 1, and all of them occur in training."""

    def fit(self, texts: list[str], labels: list[int]) -> Any:
        """Learn from texts and the class number of each."""

    def log_probabilities(self, texts: list[str]) -> Any:
        """Log-probabilities (N, K) of each text's classes, in the order of their numbers."""


class Labelled(NamedTuple):
    """Texts and their class numbers."""

    texts: list[str]
    labels: list[int]


class Majority:
    """The shares of the classes in training, whatever the text: what knowing nothing of it comes to."""

    def fit(self, texts: list[str], labels: list[int]) -> None:
        self.log_shares = np.log(np.bincount(labels) / len(labels))

    def log_probabilities(self, texts: list[str]) -> NDArray[np.float64]:
        return np.tile(self.log_shares, (len(texts), 1))


class TfidfLogistic:
    """TF-IDF, with logarithms of the counts, of n-grams of words or characters, and logistic regression.

    ngrams   the shortest and the longest
    C        how weak the L2 penalty is
    """

    def __init__(self, analyzer: Literal["word", "char"], ngrams: tuple[int, int], C: float = 1.0) -> None:  # noqa: N803
        features = TfidfVectorizer(analyzer=analyzer, ngram_range=(ngrams[0], ngrams[1]), sublinear_tf=True)
        self.pipeline = make_pipeline(features, LogisticRegression(C=C, max_iter=MORE_THAN_ENOUGH))

    def fit(self, texts: list[str], labels: list[int]) -> None:
        self.pipeline.fit(texts, labels)

    def log_probabilities(self, texts: list[str]) -> NDArray[np.float64]:
        return self.pipeline.predict_log_proba(texts)


class NBSVM:
    """NBSVM-bi (Wang and Manning 2012): which words and pairs a text has, scaled by naive Bayes log-count ratios, and a
    linear SVM on them, of several classes one against the rest.

    C      how weak the SVM's L2 penalty is
    beta   how far each weight may leave their mean size: 0 is naive Bayes but for a factor, 1 the SVM alone

    An SVM has margins, no probabilities: these are the margins' softmax at the temperature (Guo et al. 2017) that suits
    SVMs cross-fitted on training, which leaves every answer as it is.
    """

    FOLDS = 5

    def __init__(self, C: float = 1.0, beta: Annotated[float, Ge(0), Le(1)] = 0.25) -> None:  # noqa: N803
        self.features = CountVectorizer(binary=True, ngram_range=(1, 2))
        self.svm = OneVsRestClassifier(_InterpolatedSVM(C, beta))

    def fit(self, texts: list[str], labels: list[int]) -> None:
        if (fewest := int(np.bincount(labels).min())) < 2:
            raise InputError("task: NBSVM needs two training messages of each class; raise data.fraction")
        folds = min(self.FOLDS, fewest)
        self.model = CalibratedClassifierCV(self.svm, method="temperature", cv=folds, ensemble=False)
        self.model.fit(self.features.fit_transform(texts), labels)

    def log_probabilities(self, texts: list[str]) -> NDArray[np.float64]:
        p = self.model.predict_proba(self.features.transform(texts))
        return np.log(np.maximum(p, np.finfo(p.dtype).tiny))


class _InterpolatedSVM(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """The binary classifier of NBSVM, on binary features (N, V)."""

    def __init__(self, C: float, beta: float) -> None:  # noqa: N803
        self.C, self.beta = C, beta

    def fit(self, features: Any, labels: Any) -> "_InterpolatedSVM":
        self.classes_ = np.unique(labels)
        positive = np.asarray(labels) == self.classes_[-1]
        p, q = (1 + np.asarray(features[rows].sum(0)).ravel() for rows in (positive, ~positive))  # (V,)
        ratio = np.log(p / p.sum()) - np.log(q / q.sum())
        svm = LinearSVC(C=self.C, dual=False, max_iter=MORE_THAN_ENOUGH).fit(features.multiply(ratio).tocsr(), positive)
        w = svm.coef_[0]
        self.weight_ = ratio * ((1 - self.beta) * np.abs(w).mean() + self.beta * w)
        self.bias_ = svm.intercept_[0]
        return self

    def decision_function(self, features: Any) -> Any:
        return features @ self.weight_ + self.bias_


def choose(
    make: Callable[[dict[str, Any]], TextClassifier],
    grid: Mapping[str, Sequence[Any]],
    train: Labelled,
    validation: Labelled,
    classes: int,
) -> tuple[TextClassifier, dict[str, Any]]:
    """The model fitted on `train` with those constants of a grid whose loss on validation is the lowest (the first of
    equals), and these constants."""

    def loss(model: TextClassifier) -> float:
        predicted = predict(model, validation, classes)
        return float(torch.nn.functional.nll_loss(predicted.log_probabilities, predicted.labels))

    fitted = [(make(constants), constants) for constants in ParameterGrid(grid)]
    for model, _ in fitted:
        model.fit(*train)
    return fitted[0] if len(fitted) == 1 else min(fitted, key=lambda one: loss(one[0]))


def predict(model: TextClassifier, asked: Labelled, classes: int) -> Predictions:
    """What a fitted model says of texts. Raises InputError for what are no log-probabilities of that many classes."""
    given = torch.as_tensor(np.asarray(model.log_probabilities(asked.texts)), dtype=torch.float64)
    wanted = (len(asked.texts), classes)
    if given.shape != wanted or not torch.allclose(given.exp().sum(1), given.new_ones(1), atol=1e-3):
        raise InputError(
            f"task: {type(model).__name__}.log_probabilities gave an array {tuple(given.shape)} of other numbers than "
            f"log-probabilities {wanted}, texts by classes, whose exponentials add up to 1 for each text"
        )
    return Predictions(given.float(), torch.tensor(asked.labels))
