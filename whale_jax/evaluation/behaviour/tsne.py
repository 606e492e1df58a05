"""Exact t-SNE (van der Maaten and Hinton 2008) of a few hundred points, for pictures as the paper's Figure 15.

It starts from the two main directions, so that the same points always give the same map. Dimension keys: n points,
D features.
"""

import numpy as np

STEPS, EARLY = 750, 250  # of gradient descent, and how many of them are exaggerated
EXAGGERATION = 12.0  # of affinities in the early steps, so that clusters form before they settle
_TINY = 1e-12


def tsne(points: np.ndarray, perplexity: float = 30.0) -> np.ndarray:
    """Returns a map (n, 2) float64 of points (n, D) in which neighbours stay neighbours.

    Args:
      points: at least two.
      perplexity: effective number of neighbours. With few points it is a tenth of them, so that small groups do not
        melt into each other, but at least 5.
    """
    perplexity = min(perplexity, max(5.0, len(points) / 10), max(1.0, (len(points) - 1) / 3))
    p = conditional(points, perplexity)
    p = np.maximum((p + p.T) / (2 * len(points)), _TINY)
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    y = np.pad((u * s)[:, :2], ((0, 0), (0, max(0, 2 - len(s)))))
    y *= 1e-4 / max(y.std(), _TINY)
    rate = max(len(points) / EXAGGERATION / 4, 50.0)
    velocity, gains = np.zeros_like(y), np.ones_like(y)
    for step in range(STEPS):
        gradient = _gradient(p * EXAGGERATION if step < EARLY else p, y)
        # A coordinate that keeps its direction speeds up, one that turns back slows down (Jacobs 1988).
        gains = np.maximum(np.where(gradient * velocity < 0, gains + 0.2, gains * 0.8), 0.01)
        velocity = (0.5 if step < EARLY else 0.8) * velocity - rate * gains * gradient
        y = y + velocity
    return y - y.mean(0)


def conditional(points: np.ndarray, perplexity: float) -> np.ndarray:
    """Returns p(j | i) of every point's neighbours (n, n), Gaussians whose entropy is the logarithm of `perplexity`."""
    distances = _distances(points)
    np.fill_diagonal(distances, np.inf)  # nobody is its own neighbour
    distances -= distances.min(1, keepdims=True)  # so that no sum vanishes
    scale = max(distances[np.isfinite(distances)].mean(), _TINY)
    low, high = np.full((len(points), 1), -20.0), np.full((len(points), 1), 40.0)  # of log precision
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-np.exp(middle) * distances / scale)
        p = weights / weights.sum(1, keepdims=True)
        entropy = -(p * np.log(np.maximum(p, _TINY))).sum(1, keepdims=True)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return p


def _gradient(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    near = 1.0 / (1.0 + _distances(y))
    np.fill_diagonal(near, 0.0)
    q = np.maximum(near / near.sum(), _TINY)
    pull = (p - q) * near
    return 4.0 * (pull.sum(1, keepdims=True) * y - pull @ y)


def _distances(points: np.ndarray) -> np.ndarray:
    squares = np.square(points).sum(1)
    return np.maximum(squares[:, None] + squares[None] - 2.0 * points @ points.T, 0.0)
