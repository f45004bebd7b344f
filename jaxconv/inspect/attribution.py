"""Attribution: which pixels a logit depends on.

    gradient                 the sensitivity of the logit to each value         Simonyan et al.
                             2013, arXiv:1312.6034
    guided_backpropagation   the gradient through positive signals only         Springenberg et al.
                             2015, arXiv:1412.6806
    integrated_gradients     shares that add up to the logit                    Sundararajan et al.
                             2017, arXiv:1703.01365
    grad_cam                 where the feature maps support the logit           Selvaraju et al.
                             2017, arXiv:1610.02391
    occlusion                the probability lost under a grey square           Zeiler and Fergus
                             2014, arXiv:1311.2901, section 4.2

All take (module, variables, images [N, *spatial, C] as preprocessed for the network, classes [N]).
The map of a class that does not exist is NaN.
"""

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.inspect.inside import Held, apply, layer_of
from jaxconv.layers.conv import Ints, per_axis

# An array of JAX or of NumPy.
Numbers = jax.Array | np.ndarray


def gradient(
    module: nn.Module,
    variables: Any,
    images: Numbers,
    classes: Numbers,
    rule: str = "gradient",
) -> jax.Array:
    """The gradient of each image's logit for its class: [N, *spatial, C].

    `rule` is the backward rule of rectifiers, one of `backward.RULES`. With `deconvnet` the result
    is the projection of the logit.

    Raises:
      ValueError: the module does not return logits [N, K], the images are not floating point, the
        classes are not integers, or the rule does not exist.
    """
    return _gradient(Held(module), variables, *_checked(images, classes), rule)


def guided_backpropagation(
    module: nn.Module, variables: Any, images: Numbers, classes: Numbers
) -> jax.Array:
    """`gradient` with the rule `guided`: [N, *spatial, C]."""
    return gradient(module, variables, images, classes, "guided")


def integrated_gradients(
    module: nn.Module,
    variables: Any,
    images: Numbers,
    classes: Numbers,
    baseline: Any = 0.0,
    steps: int = 64,
) -> jax.Array:
    """Each value's share of the logit's difference from the baseline: [N, *spatial, C].

    The gradient is integrated along the straight line from the baseline to the image with the
    midpoint rule. The shares add up to the difference within the error of that rule. One jitted
    function is called `steps` times.

    Args:
      baseline: an image without content, or one value for all of it; its shape must broadcast to
        that of `images`. 0 is the mean image if images are normalised.
      steps: the number of steps of the integral.

    Raises:
      ValueError: as `gradient`, or `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    images, classes = _checked(images, classes)
    start = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
    total = jnp.zeros_like(images)
    for step in range(steps):
        total += _gradient(
            Held(module),
            variables,
            start + (images - start) * ((step + 0.5) / steps),
            classes,
            "gradient",
        )
    return (images - start) * total / steps


def grad_cam(
    module: nn.Module,
    variables: Any,
    images: Numbers,
    classes: Numbers,
    layer: str = "",
) -> jax.Array:
    """Where the feature maps of one layer support the class: [N, *spatial], nonnegative.

    Each feature map is weighted by the mean gradient of the logit with respect to it. Their sum is
    rectified and resized to the image.

    Args:
      layer: one of `inside.activations`; by default the last with more than one position.

    Raises:
      ValueError: as `gradient`; or the layer does not exist or has no spatial axes.
    """
    return _grad_cam(Held(module), variables, *_checked(images, classes), layer)


def occlusion(
    module: nn.Module,
    variables: Any,
    images: Numbers,
    classes: Numbers,
    window: Ints = 0,
    stride: Ints = 0,
    fill: Any = 0.0,
    batch: int = 64,
) -> jax.Array:
    """The class probability lost when a grey square hides a pixel: [N, *spatial].

    The probability without the square minus that with it, averaged over all positions of the
    square that hide the pixel. The paper shows the remaining probability instead.

    Args:
      window: the size of the square in pixels; 0 is a quarter of the image.
      stride: pixels between positions of the square; 0 is a quarter of the window. The last
        position is at the edge of the image.
      fill: the value of the square; 0 is the mean image if images are normalised.
      batch: the largest number of images in one forward pass. If there are more images than that,
        a pass takes one position in all of them.

    Raises:
      ValueError: as `gradient`, or the window is larger than the image or not positive.
    """
    images, classes = _checked(images, classes)
    spatial = images.shape[1:-1]
    windows = tuple(
        f or max(1, size // 4)
        for f, size in zip(per_axis(window, len(spatial), "window"), spatial, strict=True)
    )
    strides = tuple(
        s or max(1, f // 4)
        for s, f in zip(per_axis(stride, len(spatial), "stride"), windows, strict=True)
    )
    for size, f, s in zip(spatial, windows, strides, strict=True):
        if not 0 < f <= size or s < 1:
            raise ValueError(
                f"a window of {f} pixels at stride {s} does not fit into {size} pixels; the window "
                f"must be 1 to {size} pixels and the stride at least 1"
            )
    starts = [
        [*range(0, size - f, s), size - f]
        for size, f, s in zip(spatial, windows, strides, strict=True)
    ]
    places = np.array([*itertools.product(*starts)])
    chunk = max(1, min(len(places), batch // len(images)))
    # Pad the last chunk with positions outside the image, which hide nothing.
    beyond = np.tile(spatial, (-len(places) % chunk, 1))
    whole = _probabilities(Held(module), variables, images, classes)
    lost, times = jnp.zeros(images.shape[:-1]), jnp.zeros(spatial)
    fill = jnp.asarray(fill, images.dtype)
    for part in np.concatenate([places, beyond]).reshape(-1, chunk, len(spatial)):
        some, hidden = _occluded(
            Held(module), variables, images, classes, whole, jnp.asarray(part), windows, fill
        )
        lost, times = lost + some, times + hidden
    return lost / times[None]


def _checked(images: Any, classes: Any) -> tuple[jax.Array, jax.Array]:
    images, classes = jnp.asarray(images), jnp.asarray(classes)
    if not jnp.issubdtype(images.dtype, jnp.floating) or images.ndim < 3:
        raise ValueError(
            "attribution needs floating-point images [N, *spatial, C]; these are "
            f"{images.dtype} {images.shape}"
        )
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"classes must be integers [N]; these are {classes.dtype} {classes.shape}")
    return images, classes


def _of_classes(logits: Any, classes: Numbers) -> jax.Array:
    """Each example's logit for its class, [N].

    The logit and its gradients are NaN for a class that does not exist.
    """
    shapes = [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(logits)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][:1] != classes.shape:
        raise ValueError(
            "attribution needs a module that returns logits [N, K], and classes [N]; it returns "
            f"{shapes}, and the classes are {classes.shape}"
        )
    there = (classes >= 0) & (classes < logits.shape[1])
    mine = jnp.take_along_axis(
        logits.astype(jnp.float32), jnp.where(there, classes, 0)[:, None], axis=1
    )[:, 0]
    return mine * jnp.where(there, 1.0, jnp.nan)


@functools.partial(jax.jit, static_argnames=("held", "rule"))
def _gradient(
    held: Held, variables: Any, images: Numbers, classes: Numbers, rule: str
) -> jax.Array:
    def total(images: jax.Array) -> jax.Array:
        return jnp.sum(_of_classes(apply(held.module, variables, images, rule)[0], classes))

    return jax.grad(total)(images)


@functools.partial(jax.jit, static_argnames=("held", "layer"))
def _grad_cam(
    held: Held, variables: Any, images: Numbers, classes: Numbers, layer: str
) -> jax.Array:
    _, layers = apply(held.module, variables, images)
    spatial = [
        name
        for name, maps in layers.items()
        if maps.ndim == images.ndim and math.prod(maps.shape[1:-1]) > 1
    ]
    if not spatial:
        raise ValueError("Grad-CAM needs a layer with more than one position; this module has none")
    name = layer or spatial[-1]
    maps = layer_of(layers, name)
    if maps.ndim != images.ndim:
        raise ValueError(
            f"Grad-CAM needs a layer with spatial axes; {name} is {maps.shape[1:]}. The last layer "
            f"with spatial axes is {spatial[-1]}"
        )

    def total(maps: jax.Array) -> jax.Array:
        return jnp.sum(
            _of_classes(apply(held.module, variables, images, replaced={name: maps})[0], classes)
        )

    weights = jnp.mean(jax.grad(total)(maps), axis=tuple(range(1, maps.ndim - 1)), keepdims=True)
    spoken = jnp.maximum(jnp.sum(maps * weights, axis=-1), 0).astype(jnp.float32)
    return jax.image.resize(spoken, images.shape[:-1], "linear")


@functools.partial(jax.jit, static_argnames="held")
def _probabilities(held: Held, variables: Any, images: Numbers, classes: Numbers) -> jax.Array:
    logits, _ = apply(held.module, variables, images)
    return jnp.exp(_of_classes(jax.tree.map(jax.nn.log_softmax, logits), classes))


@functools.partial(jax.jit, static_argnames=("held", "windows"))
def _occluded(
    held: Held,
    variables: Any,
    images: Numbers,
    classes: Numbers,
    whole: jax.Array,
    places: jax.Array,
    windows: tuple[int, ...],
    fill: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The probability lost to squares whose first pixels are `places` [P, axes].

    Returns:
      The sum over the squares that hide each pixel, [N, *spatial], and their number, [*spatial].
    """
    hidden = jnp.ones((len(places), *(1,) * len(windows)), bool)
    for axis, (size, f) in enumerate(zip(images.shape[1:-1], windows, strict=True)):
        start = places[:, axis].reshape(-1, *(1,) * len(windows))
        index = jnp.arange(size).reshape(1, *(-1 if a == axis else 1 for a in range(len(windows))))
        hidden = hidden & (start <= index) & (index < start + f)
    occluded = jnp.where(
        hidden[None, ..., None], jnp.broadcast_to(fill, images.shape)[:, None], images[:, None]
    )
    left = _probabilities(
        held, variables, occluded.reshape(-1, *images.shape[1:]), jnp.repeat(classes, len(places))
    )
    lost = whole[:, None] - left.reshape(len(images), -1)
    return jnp.einsum("np,p...->n...", lost, hidden.astype(lost.dtype)), jnp.sum(
        hidden, axis=0, dtype=lost.dtype
    )
