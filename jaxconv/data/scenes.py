"""Scenes of X's and O's: several letters of different places, sizes and turns, with exact masks and
boxes; and single letters with a box.

    xo_scenes   `segmentation` [S, S] uint8: 0 neither, 1 an O's ink, 2 an X's; of letters that
                overlap, the later one. `boxes` [M, 4] float32, `classes` [M] int32 (1 or 2) and
                `valid` [M] bool of up to M letters. A task that needs `classes` and no mask has
                these alone: 0 an O, 1 an X
                One that needs `masks` has the ink of each letter, [S, S, ceil(M / 8)] uint8
                as bits, see `objects.as_bits`
    xo_boxes    one letter somewhere: `label` (0 an O, 1 an X) and `boxes` [1, 4] float32

Boxes are (top, left, bottom, right) in pixels, around all of a letter's ink, also that below
another letter, which its own mask has too. Example i of a split is a function of (seed, split, i)
alone.
"""

from typing import NamedTuple

import numpy as np

from jaxconv.data.interface import Arrays, generator
from jaxconv.data.objects import as_bits
from jaxconv.data.xo import CLASS_NAMES, GRID, STROKE, distance_to_figure, paint, to_bytes
from jaxconv.errors import UserError

SCENE_CLASSES = ("neither", *CLASS_NAMES)
# A letter's half width, as a share of the image's.
_REACHES = (0.09, 0.2)
# How often a place is drawn for a letter, and how near two letters' centers may be, as a share of
# the sum of their half diagonals.
_TRIES, _NEAREST = 30, 0.75


class Scene(NamedTuple):
    """One example.

    Attributes:
      image: [S, S, 1] uint8.
      mask: [S, S] uint8, see the module.
      boxes: [n, 4] float32 of the letters, in the order in which they were drawn.
      classes: [n] int32: 1 an O, 2 an X.
      inks: [n, S, S] bool: the pixels of each letter.
    """

    image: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    inks: np.ndarray


def draw_scene(
    seed: int,
    split: str,
    index: int,
    size: int = 64,
    letters: tuple[int, int] = (2, 5),
    noise: float = 0.2,
) -> Scene:
    """Draw one scene of `letters[0]` to `letters[1]` letters, fewer where there is no place left.

    Args:
      seed, split, index: of the example.
      size: of the image in pixels.
      letters: fewest and most.
      noise: standard deviation, on the lecture's scale from -1 (paper) to 1 (ink).
    """
    random = generator(seed, f"scene {split}", index)
    image, mask = np.full((size, size), -1.0), np.zeros((size, size), np.uint8)
    pixels = np.arange(size) + 0.5
    placed: list[tuple[float, float, float]] = []
    boxes, classes, inks = [], [], []
    for _ in range(int(random.integers(letters[0], letters[1] + 1))):
        label, reach = int(random.integers(2)), random.uniform(*_REACHES) * size
        angle, stretch = random.uniform(0, 2 * np.pi), random.uniform(0.8, 1.25)
        half = reach * 1.5  # of the diagonal, with the stroke
        for _ in range(_TRIES):
            y, x = random.uniform(half, size - half, 2)
            if all(
                np.hypot(y - other_y, x - other_x) > _NEAREST * (half + other)
                for other_y, other_x, other in placed
            ):
                break
        else:
            continue
        down, across = pixels[:, None] - y, pixels[None, :] - x
        turned = (
            np.cos(angle) * down - np.sin(angle) * across,
            np.sin(angle) * down + np.cos(angle) * across,
        )
        sides = reach * np.array([np.sqrt(stretch), 1 / np.sqrt(stretch)])
        distance = distance_to_figure(label, *turned, sides)
        # At least three pixels wide, so that the smallest letters are more than an outline.
        ink = paint(distance, max(3.0, STROKE * 2.5 * reach / (GRID / 2)))
        of_letter = ink > 0
        rows, columns = (np.flatnonzero(of_letter.any(axis=axis)) for axis in (1, 0))
        placed.append((y, x, half))
        boxes.append([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
        classes.append(1 + label)
        inks.append(of_letter)
        image, mask = np.maximum(image, ink), np.where(of_letter, np.uint8(1 + label), mask)
    image = image + noise * random.standard_normal((size, size))
    return Scene(
        to_bytes(image),
        mask,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int32),
        np.array(inks, bool).reshape(-1, size, size),
    )


def draw_scenes(
    split: str,
    size: int = 64,
    channels: int = 1,
    letters: tuple[int, int] = (2, 5),
    noise: float = 0.2,
    seed: int = 0,
    train_examples: int = 2_000,
    test_examples: int = 500,
    single: bool = False,
    unmasked: bool = False,
    instances: bool = False,
) -> Arrays:
    """The split `train` or `test` of xo_scenes, if need be `unmasked` and with the masks of
    `instances`, or, with `single`, of xo_boxes.

    Raises:
      UserError: the split does not exist, or a setting is out of range.
    """
    examples, name = {"train": train_examples, "test": test_examples}, "xo_scenes"
    name = "xo_boxes" if single else name
    if split not in examples:
        raise UserError(f"{name} has no split {split!r}; it has train and test")
    fewest, most = (1, 1) if single else letters
    for key, value, low, high in (
        ("size", size, 32, 4096),
        ("channels", channels, 1, 64),
        ("noise", noise, 0, 10),
        (f"{split}_examples", examples[split], 1, 10**8),
        ("letters", fewest, 1, most),
    ):
        if not low <= value <= high:
            raise UserError(
                f"config.data.scenes.{key} is {value}; it must be between {low} and {high}"
            )
    drawn = [
        draw_scene(seed, split, i, size, (fewest, most), noise) for i in range(examples[split])
    ]
    images = np.repeat(np.stack([scene.image for scene in drawn]), channels, axis=-1)
    if single:
        values = {
            "label": np.array([scene.classes[0] - 1 for scene in drawn], np.int32),
            "boxes": np.stack([scene.boxes for scene in drawn]),
        }
        return Arrays(images, values, CLASS_NAMES, moves={"boxes": "boxes"})
    valid = np.array([np.arange(most) < len(scene.classes) for scene in drawn])
    boxes, classes = np.zeros((len(drawn), most, 4), np.float32), np.zeros_like(valid, np.int32)
    for n, scene in enumerate(drawn):
        boxes[n, : len(scene.boxes)], classes[n, : len(scene.classes)] = scene.boxes, scene.classes
    objects = {"boxes": boxes, "classes": classes, "valid": valid}
    moves = {"segmentation": "mask", "boxes": "boxes", "masks": "mask"}
    if instances:
        objects["masks"] = np.stack([as_bits(scene.inks, most) for scene in drawn])
    if unmasked:
        objects["classes"] = np.where(valid, classes - 1, 0).astype(np.int32)
        return Arrays(images, objects, CLASS_NAMES, moves=moves)
    masks = np.stack([scene.mask for scene in drawn])
    values = {"segmentation": masks, **objects}
    return Arrays(images, values, SCENE_CLASSES, moves=moves)
