"""Which classes are confused most, for every task that counts which are taken for which."""

import numpy as np


def most_confused(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The largest nonzero counts off the diagonal of [K, K], in descending order.

    Returns:
      (true class, predicted class, count) for each.
    """
    mistaken = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistaken, axis=None, kind="stable")[:most]
    pairs = [(*divmod(int(place), len(counts)), int(mistaken.flat[place])) for place in order]
    return [pair for pair in pairs if pair[2]]
