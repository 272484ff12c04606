"""What features say: how each training example moved each margin, and how well that predicts what retraining does.

In: features of examples and of margins at a point of a stage; margins that models trained on subsets reached. Out: scores, and
rank correlations.

Positive is what raises a margin: a step down the gradient of an example's nats changes it by minus the inner product of the two
gradients, times the learning rate (TracIn, arXiv 2002.08484).
"""

import numpy as np
import scipy.stats


def newton(margins_IF: np.ndarray, examples_NF: np.ndarray, damping: float) -> np.ndarray:
    """[I, F]: features of margins times the inverse of the Gauss-Newton matrix of `examples_NF`, what a stage trains on
    (arXiv 2303.14186): what other examples teach as well counts less. `damping` is a share of its mean eigenvalue, added to all."""
    N, F = examples_NF.shape
    gram_NN = examples_NF @ examples_NF.T / N
    ridge = damping * float(np.trace(gram_NN)) / min(N, F)
    # (X'X / N + ridge)^-1 by way of the smaller matrix X X' (Woodbury).
    inner_NI = np.linalg.solve(gram_NN + ridge * np.eye(N, dtype=gram_NN.dtype), examples_NF @ margins_IF.T / N)
    return (margins_IF - inner_NI.T @ examples_NF) / ridge


def datamodeling_score(scores: np.ndarray, kept: np.ndarray, margins: np.ndarray) -> tuple[float, np.ndarray]:
    """The linear datamodeling score (arXiv 2303.14186, section 2), and that of each item, [I]: Spearman's rank correlation, over
    subsets, of the summed scores [Z, I] of the examples that were `kept` [S, Z] with the margins [S, I] of models trained on them.
    """
    predicted = kept.astype(np.float64) @ scores
    ranks, of_margins = scipy.stats.rankdata(predicted, axis=0), scipy.stats.rankdata(margins, axis=0)
    of_items = np.array([_correlation(one, other) for one, other in zip(ranks.T, of_margins.T, strict=True)])
    return float(of_items.mean()), of_items


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """0 where one of them is the same everywhere: that predicts nothing."""
    return float(np.corrcoef(one, other)[0, 1]) if np.ptp(one) and np.ptp(other) else 0.0
