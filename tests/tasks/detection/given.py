"""Shared by the tests of detection: random boxes, and torchvision's order of corners."""

import numpy as np
from hypothesis import strategies as st

# torchvision has (x1, y1, x2, y2).
TURNED = [1, 0, 3, 2]


def boxes_of(seed, count, size=(300, 400), smallest=1.0, largest=150.0):
    """`count` random boxes [count, 4] float32, which may reach beyond the image."""
    random = np.random.default_rng(seed)
    corners = random.uniform(-20, size, (count, 2))
    sides = np.exp(random.uniform(np.log(smallest), np.log(largest), (count, 2)))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def on_a_grid(seed, count, side=8):
    """Boxes with small whole coordinates: many are equal, touch, or have no area."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, side, (count, 2))
    return np.concatenate([corners, corners + random.integers(0, side, (count, 2))], axis=1).astype(
        np.float32
    )


SEEDS = st.integers(0, 2**31)
