"""How much of something a linear map reads out of embeddings.

Two measures, both by maps that see nothing but the embedding:

- R2 of ridge regression: what share of a number's variance is found;
- F1 of multinomial logistic regression, in which every value of a number is a class of its own,
  as Anand et al. (2019, https://arxiv.org/abs/1906.08226) judge encoders.

scikit-learn fits both. Penalties are chosen on moments that are neither learned from nor judged
(`Split.check`). Embeddings are first turned into their principal axes on the moments learned from;
of embeddings with more than `WIDEST` numbers the leading axes are kept, and `Axes.kept` says how
much of their variance that is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDEST = 1024
# A whole eigenvalue decomposition of this many axes takes seconds; of more, the leading ones are
# found by a randomized one, in which those with the smallest share are approximate.
_EXACT = 2048
_COLUMNS = 2048  # Of an embedding, looked at together.
# Rows have a mean squared length of 1.
PENALTIES = 10.0 ** np.arange(-5, 3)
# For logistic regression rows are scaled once more, so that each axis has a mean square near 1;
# those with a share of the variance below FAINT stay small.
FAINT = 1e-4
LOGISTIC_PENALTIES = (1e-2, 1e-3, 1e-4)

Rows = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Split:
    """Moments, as places in an array: learned from, that choose a penalty, and judged."""

    fit: Rows
    check: Rows
    test: Rows

    @property
    def train(self) -> Rows:
        """All that is not judged."""
        return np.concatenate([self.fit, self.check])


@dataclasses.dataclass(frozen=True)
class Axes:
    """Embeddings along their principal axes.

    Attributes:
        rows: (n, K), centred, of mean squared length 1 over the moments trained on.
        kept: Share of the variance there that these axes have.
    """

    rows: NDArray[np.float64]
    kept: float


def principal(embeddings: NDArray[Any], split: Split, widest: int | None = WIDEST) -> Axes:
    """Turn embeddings into their principal axes on `split.train`.

    Args:
        embeddings: (n, width).
        split: Which of them are trained on.
        widest: Axes that are kept at most; all if None.
    """
    from sklearn.decomposition import PCA, KernelPCA

    train, (count, width) = split.train, embeddings.shape
    most = min(width, len(train), widest or width)
    exact = min(width, len(train)) <= max(_EXACT, most)
    if width <= len(train):
        rows = embeddings.astype(np.float64)
        total = rows[train].var(axis=0).sum() * len(train)
        solver = "covariance_eigh" if exact else "randomized"
        pca = PCA(most, svd_solver=solver, random_state=0).fit(rows[train])
        found, values = pca.transform(rows), pca.explained_variance_ * (len(train) - 1)
    else:
        # Products of moments tell the same axes, and are fewer than the embeddings' numbers.
        products = np.zeros((count, len(train)))
        for part in _centred(embeddings, train):
            products += part @ part[train].T
        total = products[train].trace()
        solver = "dense" if exact else "randomized"
        kernel = KernelPCA(
            most, kernel="precomputed", eigen_solver=solver, random_state=0, copy_X=False
        ).fit(products[train])
        # Products are sums of single precision: what is smaller than their error is no axis.
        true = kernel.eigenvalues_ > 1e-7 * kernel.eigenvalues_.max()
        found, values = kernel.transform(products)[:, true], kernel.eigenvalues_[true]
    scale = max(total / len(train), 1e-30) ** 0.5
    return Axes(found / scale, float(values.sum() / max(total, 1e-30)))


def _centred(embeddings: NDArray[Any], train: Rows) -> Iterator[NDArray[np.float32]]:
    """(n, at most `_COLUMNS`), some numbers after another, less their mean over `train`."""
    for at in range(0, embeddings.shape[1], _COLUMNS):
        part = embeddings[:, at : at + _COLUMNS].astype(np.float64)
        yield (part - part[train].mean(axis=0)).astype(np.float32)


def ridge(axes: Axes, wanted: NDArray[Any], split: Split) -> NDArray[np.float64]:
    """What ridge regression finds of each variable, its penalty chosen by `split.check`.

    Args:
        axes: From `principal`.
        wanted: (n, V), the variables.

    Returns:
        (tests, V), the variables as found where they are judged.
    """
    from sklearn.linear_model import Ridge

    rows = axes.rows
    scores = [
        r2(
            wanted[split.check],
            Ridge(penalty).fit(rows[split.fit], wanted[split.fit]).predict(rows[split.check]),
        )
        for penalty in PENALTIES
    ]
    chosen = PENALTIES[np.nan_to_num(scores, nan=-np.inf).argmax(axis=0)]
    model = Ridge(chosen).fit(rows[split.train], wanted[split.train])
    found: NDArray[np.float64] = model.predict(rows[split.test])
    return found.reshape(-1, wanted.shape[1])  # Of one variable, scikit-learn gives (tests,).


def r2(truth: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """Coefficient of determination of each column, (V,); NaN where the truth does not vary.

    Args:
        truth: (n, V), with n at least 1.
        found: (n, V).
    """
    from sklearn.metrics import r2_score

    scores = r2_score(truth, found, multioutput="raw_values")
    return np.where(np.ptp(truth, axis=0) > 0, scores, np.nan)


def classify(axes: Axes, labels: NDArray[Any], split: Split) -> NDArray[Any]:
    """Predict the label of each judged moment by multinomial logistic regression.

    It learns from `split.fit`, on axes scaled to be alike, with ever weaker penalties until F1 on
    `split.check` falls.

    Args:
        axes: From `principal`.
        labels: (n,), the class of each moment.

    Returns:
        (tests,), labels that were seen in training.
    """
    from sklearn.linear_model import LogisticRegression

    own = labels[split.fit]
    answer = np.full(len(split.test), own[0])
    if (own == own[0]).all():
        return answer
    rows = axes.rows / np.sqrt((axes.rows[split.fit] ** 2).mean(axis=0) + FAINT)
    model = LogisticRegression(max_iter=1000, warm_start=True)
    best = -1.0
    for penalty in LOGISTIC_PENALTIES:
        # scikit-learn adds up the moments' losses; the penalty is that of their mean.
        model.set_params(C=1 / (penalty * len(own))).fit(rows[split.fit], own)
        score = f1(labels[split.check], model.predict(rows[split.check]))[0]
        if score < best:
            break
        best, answer = score, model.predict(rows[split.test])
    return answer


def f1(truth: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    """F1 of each class of the truth: the mean by how often each occurs, and the plain mean.

    Args:
        truth: (n,), with n at least 1.
        found: (n,).
    """
    from sklearn.metrics import f1_score

    classes, counts = np.unique(truth, return_counts=True)
    scores = f1_score(truth, found, labels=classes, average=None)
    return float(scores @ counts / len(truth)), float(scores.mean())


def entropy(values: NDArray[Any]) -> float:
    """Entropy of a variable's values, in nats."""
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log(shares)).sum())
