"""What a network sees of each image in evaluation, and how its predictions are combined.

    center    the center crop, as in evaluation during training
    flip      the center crop and its mirror image
    6-crop    the center crop, and the same moved by one pixel up and left, and down and right, with
              the border mirrored; and their mirror images. The moved ones count half (Jordan 2024,
              arXiv:2404.00498, section 3.5)
    10-crop   the four corners and the center, and their mirror images, of the central square of the
              image resized to size / crop_ratio: AlexNet's (Krizhevsky et al. 2012, section 4.1)
              224 of 256
    dense     the whole image and its mirror image, at each of several scales; fully connected
              layers slide over it as convolutions, and the class scores are averaged over positions
              (Simonyan and Zisserman 2014, arXiv:1409.1556, section 3.2)
    scales    for outputs of each pixel: the image at several sizes and its mirror images
    sliding   for outputs of each pixel: windows of the size of training, each overlapping the next

The probabilities of an image's views are averaged; those of pixels, in place (pixels.py). What is
detected in an image and in its mirror image is joined by the task.

With `own_size`, outputs of each pixel are measured on whole images at their own size: an image is
resized so that what training saw of it has the size that it had there, and the network's outputs
are resized to the image, whose mask stays as it is.

Dense evaluation does not crop images to squares. The shorter side is resized to the scale Q, and
the longer one is center-cropped to Q + n * S, where S is the stride of the network's last feature
maps: 32 for VGG. So there are few shapes, each compiled once, and every network that takes Q x Q
takes them. The longer side is cropped to at most three times the shorter one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv import moved
from jaxconv.errors import UserError, nearest
from jaxconv.evaluation.sliding import Apply

VIEWS = ("center", "flip", "6-crop", "10-crop", "dense", "scales", "sliding")
# The largest factor of an image's size.
_LARGEST = 16


@dataclasses.dataclass(frozen=True)
class View:
    """Which views of an image are taken.

    Attributes:
      name: of `VIEWS`.
      scales: for `dense`, pixels of the shorter side; empty for the size that the center crop is
        cut from. For `scales`, factors of the image's size; empty for `pixels.FACTORS`.
      crop_ratio: share of the shorter side that a crop covers; 0 for the run's `data.crop_ratio`.
      own_size: whether to measure on whole images at their own size.

    Raises:
      UserError: the view is unknown, or the settings do not apply to it.
    """

    name: str = "center"
    scales: tuple[float, ...] = ()
    crop_ratio: float = 0.0
    own_size: bool = False

    def __str__(self) -> str:
        scales = f" at {', '.join(map(str, self.scales))}" if self.scales else ""
        ratio = f", crop_ratio {self.crop_ratio:g}" if self.crop_ratio else ""
        return self.name + scales + ratio + ", own size" * self.own_size

    def __post_init__(self) -> None:
        if self.name not in VIEWS:
            raise UserError(
                f"--views={self.name}: unknown view{nearest(self.name, VIEWS)}; it must be one "
                f"of {', '.join(VIEWS)}"
            )
        said = f"--scales={','.join(map(str, self.scales))}"
        if self.scales and self.name not in ("dense", "scales"):
            raise UserError(
                f"{said}: applies to --views=dense and --views=scales, not to {self.name}"
            )
        if self.name == "dense" and any(type(n) is not int or n < 1 for n in self.scales):
            raise UserError(f"{said}: must be whole numbers of pixels, such as 256,384,512")
        if self.name == "scales" and any(not 0 < n <= _LARGEST for n in self.scales):
            raise UserError(
                f"{said}: must be factors of the image's size, above 0 and at most {_LARGEST}, "
                "such as 0.75,1,1.25"
            )
        if not 0 <= self.crop_ratio <= 1:
            raise UserError(
                f"--crop_ratio={self.crop_ratio:g}: must be more than 0 and at most 1, such as "
                "0.875"
            )
        if self.crop_ratio and self.name == "dense":
            raise UserError(
                f"--crop_ratio={self.crop_ratio:g}: does not apply to --views=dense; give --scales"
            )
        if self.crop_ratio and self.own_size:
            raise UserError(
                f"--crop_ratio={self.crop_ratio:g}: does not apply to --own_size, which crops "
                "nothing"
            )


def read_scales(text: str) -> tuple[float, ...]:
    """Numbers separated by commas, whole ones as int; raises UserError for anything else."""
    try:
        parts = text.split(",") if text else ()
        return tuple(int(part) if part.strip().isdecimal() else float(part) for part in parts)
    except ValueError as error:
        raise UserError(
            f"--scales={text}: must be numbers separated by commas, such as 256,384,512 pixels "
            "for --views=dense and 0.75,1,1.25 for --views=scales"
        ) from error


def mirrored(images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 2, H, W, C]: images and their mirror images."""
    return jnp.stack([images, images[:, :, ::-1]], axis=1)


def six_crops(images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 6, H, W, C]: as it is, moved by a pixel either way, then mirror images.

    It is moved up and left, and down and right; the border is mirrored.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    moved = [padded[:, n : n + height, n : n + width] for n in (1, 2, 0)]
    crops = jnp.stack(moved, axis=1)
    return jnp.concatenate([crops, crops[:, :, :, ::-1]], axis=1)


def ten_crops(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, 10, size, size, C]: four corners, center, then their mirror images."""
    bottom, right = images.shape[1] - size, images.shape[2] - size
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    crops = jnp.stack(
        [images[:, top : top + size, left : left + size] for top, left in corners], axis=1
    )
    return jnp.concatenate([crops, crops[:, :, :, ::-1]], axis=1)


def over_views(
    apply: Apply, cut: Callable[[jax.Array], jax.Array], weights: Sequence[float] = ()
) -> Apply:
    """A network that returns log mean probabilities [B, K] over each image's views.

    Args:
      apply: (variables, images [B, ...]) -> logits.
      cut: images [B, ...] -> their views [B, V, ...].
      weights: of the views, V numbers; by default they are equal.
    """

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        views = cut(images)
        count = views.shape[1]
        # Views of an image stay adjacent, so that each device keeps those of its own images.
        each = apply(variables, views.reshape(-1, *views.shape[2:]))
        logarithms = jax.nn.log_softmax(each).reshape(-1, count, each.shape[-1])
        shares = np.array(weights or (1,) * count, np.float32).reshape(1, -1, 1)
        return jax.nn.logsumexp(logarithms, axis=1, b=shares / shares.sum())

    return logits


__getattr__ = moved.names_of(__name__)
