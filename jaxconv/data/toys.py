"""Toy sets in 1-D and 3-D, and clips, drawn on the fly: for tests, and to try a network before
there is data.

    tones      rising, falling and steady tones in noise: sound, see data/signals.py
    sentences  lines of random words and one word that gives the topic: text
    solids     balls, cubes and crosses in noise: volumes [S, S, S, 1] uint8
    xo_clips   an X or an O that moves to the left or right, in noise: clips [S / 2, S, S, 1] uint8

Example i of a split is a function of (seed, split, i) alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxconv.data.interface import generator
from jaxconv.errors import UserError

TONES = ("falling", "rising", "steady")
SOLIDS = ("ball", "cross", "cube")
CLIPS = ("O left", "O right", "X left", "X right")
TOPICS = {
    "animals": ("horse", "otter", "heron", "mouse", "trout"),
    "kitchen": ("spoon", "bread", "onion", "stove", "plate"),
    "weather": ("storm", "cloud", "frost", "sunny", "windy"),
}


class DrawnRecords:
    """Records that are drawn on demand.

    Args:
      draw: (random, label) -> payload.
      classes: number of classes.
      split: `train` or `test`.
      settings: `config.data.toy`.

    Raises:
      UserError: the split does not exist.
    """

    has_labels = True

    def __init__(
        self,
        draw: Callable[[np.random.Generator, int], Any],
        classes: int,
        split: str,
        settings: Any,
    ):
        examples = {"train": settings.train_examples, "test": settings.test_examples}
        if split not in examples:
            raise UserError(f"split {split!r} not found; the splits are train and test")
        self._draw, self._split, self._seed = draw, split, settings.seed
        self._labels = (np.arange(examples[split]) % classes).astype(np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        label = int(self._labels[i])
        return self._draw(generator(self._seed, self._split, i), label), label

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        return self._labels

    def name(self, i: int) -> str:
        """`example i`."""
        return f"example {i}"

    def checksum(self) -> int:
        """The number of examples: everything else is in the config."""
        return len(self)


def draw_tone(random: np.random.Generator, label: int, rate: int, seconds: float) -> np.ndarray:
    """Samples [L] float32 from -1 to 1 of one tone in noise.

    Its frequency falls or rises by half an octave to an octave, or is constant.
    """
    time = np.arange(round(rate * seconds)) / rate
    start = random.uniform(0.03, 0.06) * rate
    octaves = random.uniform(0.5, 1) * (-1, 1, 0)[label]
    phase = (
        2 * np.pi * (np.cumsum(start * 2 ** (octaves * time / seconds)) / rate + random.uniform())
    )
    tone = random.uniform(0.2, 0.6) * np.sin(phase) + 0.1 * random.standard_normal(len(time))
    return np.clip(tone, -1, 1).astype(np.float32)


def draw_sentence(random: np.random.Generator, label: int) -> str:
    """A line of eight words of five letters, one of which belongs to the topic."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(random.choice(letters, 5)) for _ in range(8)]
    words[random.integers(8)] = random.choice(list(TOPICS.values())[label])
    return " ".join(words)


def draw_solid(random: np.random.Generator, label: int, size: int) -> np.ndarray:
    """One solid [size, size, size, 1] uint8 in noise, at a random position and scale."""
    reach = random.uniform(0.25, 0.42) * size
    centre = (size - 1) / 2 + random.uniform(-0.08, 0.08, 3) * size
    z, y, x = (np.abs(np.arange(size) - c) for c in centre)
    away = (
        np.stack(np.broadcast_arrays(z[:, None, None], y[None, :, None], x[None, None, :])) / reach
    )
    solid = (
        np.sum(away**2, axis=0) <= 1,
        np.sum(away <= 0.3, axis=0) >= 2,
        np.max(away, axis=0) <= 0.8,
    )[label] & (np.max(away, axis=0) <= 1)
    image = 64 + 128 * solid + 40 * random.standard_normal(solid.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)[..., None]


def draw_clip(random: np.random.Generator, label: int, size: int) -> np.ndarray:
    """Frames [size // 2, size, size, 1] uint8 of a letter that moves by half of its width or more.

    It may be anywhere, so a frame alone hardly tells where it goes.
    """
    frames, reach = size // 2, random.uniform(0.16, 0.22) * size
    moved = random.uniform(1, 2) * reach * np.linspace(-0.5, 0.5, frames)
    margin = (size - 1) / 2 - 2 * reach
    top, left = (size - 1) / 2 + random.uniform(-1, 1, 2) * margin
    x = np.arange(size) - left - (moved if label % 2 else -moved)[:, None]
    x, y = np.broadcast_arrays(x[:, None, :], (np.arange(size) - top)[None, :, None])
    if label < 2:
        letter = np.abs(np.hypot(x, y) - reach) <= 0.8
    else:
        letter = (np.abs(np.abs(x) - np.abs(y)) <= 1) & (np.maximum(np.abs(x), np.abs(y)) <= reach)
    image = 64 + 128 * letter + 20 * random.standard_normal(letter.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)[..., None]
