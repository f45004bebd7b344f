"""X's and O's: the lecture's toy problem, "says whether a picture is of an X or an O".

The lecture's trickier cases, each a setting, 0 for off:

    translation  the figure is moved by up to this share of the image's width
    scaling      each axis is stretched or shrunk by up to this share
    rotation     the figure is rotated by up to this many degrees
    weight       the stroke is thicker or thinner by up to this share
    noise        normal noise of this deviation is added, on the lecture's scale from -1 (paper) to
                 1 (ink)

Example i of a split is a function of (seed, split, i) alone. At size 9 with everything off, an X is
the lecture's nine-by-nine X.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxconv.data.interface import Arrays, generator
from jaxconv.errors import UserError

CLASS_NAMES = ("o", "x")

# On the lecture's nine-by-nine grid the figure spans pixels 1 to 7, and a diagonal stroke is one
# pixel wide: ink is full on the line, and zero at sqrt(1/2), the distance of its neighbours.
GRID = 9
_REACH = 3.0
STROKE = 0.5**0.5
# The number of line segments that are drawn at a time.
_PIECES = 32


@dataclasses.dataclass(frozen=True)
class Variation:
    """How much examples vary; see the module. Raises UserError for a value out of range."""

    translation: float = 0.0
    scaling: float = 0.0
    rotation: float = 0.0
    weight: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (
            ("translation", 1),
            ("scaling", 0.9),
            ("rotation", 360),
            ("weight", 0.9),
            ("noise", 10),
        ):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise UserError(f"xo.{name} is {value}; it must lie between 0 and {most}")


def draw_split(
    split: str,
    size: int = 32,
    seed: int = 0,
    train_examples: int = 10_000,
    test_examples: int = 2_000,
    channels: int = 1,
    **variation: float,
) -> Arrays:
    """Draw the split `train` or `test`: images [N, size, size, channels] uint8.

    All channels are equal; 0 is the lecture's -1, 255 its 1.

    Raises:
      UserError: the split does not exist, or a setting is out of range.
    """
    examples = {"train": train_examples, "test": test_examples}
    if split not in examples:
        raise UserError(f"xo has no split {split!r}; it has train and test")
    if size < 5:
        raise UserError(f"xo.size is {size}; an X needs at least 5 pixels")
    if examples[split] < 1:
        raise UserError(f"xo.{split}_examples is {examples[split]}; it must be at least 1")
    settings = Variation(**variation)
    drawn = [draw(seed, split, i, size, settings) for i in range(examples[split])]
    images = np.repeat(np.stack([image for image, _ in drawn]), channels, axis=-1)
    return Arrays(images, np.array([label for _, label in drawn], np.int32), CLASS_NAMES)


def draw(
    seed: int, split: str, index: int, size: int = 32, variation: Variation = Variation()
) -> tuple[np.ndarray, int]:
    """Draw one example: its image [size, size, 1] uint8, and its label, 0 for an O, 1 for an X."""
    random = generator(seed, split, index)
    label = int(random.integers(2))
    shift = random.uniform(-variation.translation, variation.translation, 2) * size
    scale = 1 + random.uniform(-variation.scaling, variation.scaling, 2)
    angle = np.deg2rad(random.uniform(-variation.rotation, variation.rotation))
    stroke = STROKE * (1 + random.uniform(-variation.weight, variation.weight)) * size / GRID

    pixels = np.arange(size) - (size - 1) / 2
    y, x = pixels[:, None] - shift[0], pixels[None, :] - shift[1]
    turned_y, turned_x = (
        np.cos(angle) * y - np.sin(angle) * x,
        np.sin(angle) * y + np.cos(angle) * x,
    )
    # In its own coordinates the figure spans -reach to reach at any scale.
    distance = distance_to_figure(label, turned_y, turned_x, scale * _REACH * size / GRID)
    image = paint(distance, stroke) + variation.noise * random.standard_normal((size, size))
    return to_bytes(image), label


def draw_strokes(
    strokes: Sequence[np.ndarray], size: int = 32, weight: float = 0.0, fit: bool = False
) -> np.ndarray:
    """Draw lines with the pen of the examples: an image [size, size, 1] uint8.

    Args:
      strokes: lines of points [P, 2], (x, y) from the upper left corner as shares of the width; a
        single point is a dot.
      size: height and width in pixels.
      weight: the pen is thicker by this share.
      fit: center the drawing, and scale its longer side to that of an example without variation.
    """
    lines = [
        (np.asarray(line, np.float32).reshape(-1, 2) - 0.5) * size for line in strokes if len(line)
    ]
    if not lines:
        return to_bytes(np.full((size, size), -1.0))
    if fit:
        low, high = (
            np.min([line.min(0) for line in lines], 0),
            np.max([line.max(0) for line in lines], 0),
        )
        extent = float((high - low).max())
        # A dot has no extent to scale.
        scale = 2 * _REACH * size / GRID / extent if extent > 0 else 1.0
        lines = [(line - (low + high) / 2) * scale for line in lines]
    starts = np.concatenate([line[:-1] if len(line) > 1 else line for line in lines])
    ends = np.concatenate([line[1:] if len(line) > 1 else line for line in lines])
    stroke, middle = STROKE * (1 + weight) * size / GRID, (size - 1) / 2
    distance = np.full((size, size), np.inf, np.float32)
    # A few successive segments are close together, so only the pixels around them are computed.
    for first in range(0, len(starts), _PIECES):
        start, end = starts[first : first + _PIECES], ends[first : first + _PIECES]
        low, high = (
            np.minimum(start, end).min(0) - stroke - 1 + middle,
            np.maximum(start, end).max(0) + stroke + 1 + middle,
        )
        (left, top), (right, bottom) = np.clip([low, high + 1], 0, size).astype(int).tolist()
        near = distance[top:bottom, left:right]
        np.minimum(
            near,
            _distance_to_lines(
                start, end, np.arange(top, bottom) - middle, np.arange(left, right) - middle
            ),
            out=near,
        )
    return to_bytes(paint(distance, stroke))


def _distance_to_lines(
    starts: np.ndarray, ends: np.ndarray, y: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """Distance [len(y), len(x)] in pixels to the nearest segment between points [P, 2], (x, y)."""
    (wx, wy), (fromx, fromy) = (
        np.split(values.astype(np.float32)[..., None], 2, axis=1)
        for values in (ends - starts, starts)
    )
    tx, ty = (
        x.astype(np.float32)[None, None, :] - fromx,
        y.astype(np.float32)[None, :, None] - fromy,
    )
    along = np.clip((tx * wx + ty * wy) / np.maximum(wx**2 + wy**2, 1e-9), 0, 1)
    return np.sqrt(((tx - along * wx) ** 2 + (ty - along * wy) ** 2).min(0))


def paint(distance: np.ndarray, stroke: float) -> np.ndarray:
    """-1 for paper to 1 for ink, by the distance in pixels to the center of a stroke."""
    # A ramp one diagonal pixel wide softens the edge; a stroke of that width is full only on its
    # center line.
    return 2 * np.clip(0.5 + (stroke / 2 - distance) / STROKE, 0, 1) - 1


def to_bytes(image: np.ndarray) -> np.ndarray:
    """[H, W] on the lecture's scale from -1 to 1 -> [H, W, 1] uint8."""
    return np.clip(np.rint((image + 1) * 127.5), 0, 255).astype(np.uint8)[..., None]


def distance_to_figure(label: int, y: np.ndarray, x: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Distance in pixels from each position to the center of the stroke.

    `reach` is the figure's half height and half width.
    """
    ry, rx = reach
    if label == 0:
        # The ray from the centre crosses the ellipse at (y, x) / radius; the centre has no ray.
        radius = np.hypot(y / ry, x / rx)
        crossing = np.where(radius > 0, np.hypot(y, x) / np.maximum(radius, 1e-9), min(ry, rx))
        return np.abs(np.hypot(y, x) - crossing)
    length2 = ry**2 + rx**2
    arms = []
    for sign in (1, -1):
        along = np.clip((y * ry + sign * x * rx) / length2, -1, 1)
        arms.append(np.hypot(y - along * ry, x - sign * along * rx))
    return np.minimum(*arms)
