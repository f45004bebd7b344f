"""Sliding a network over larger images, with its fully connected layers as convolutions.

Sermanet et al. 2013, arXiv:1312.6229, section 3.5; Simonyan and Zisserman 2014, arXiv:1409.1556,
section 3.2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxconv.layers import Dense
from jaxconv.layers.conv import convolve
from jaxconv.models import features
from jaxconv.models.notation import expand, parse
from jaxconv.models.text import Text, name_layers
from jaxconv.program import trace

# (variables, images [N, H, W, C]) -> logits [N, K].
Apply = Callable[[Any, jax.Array], jax.Array]


def images_of(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """One image of shape (H, W, C), for tracing."""
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32)


def total_stride(model: nn.Module, variables: Any, shape: tuple[int, ...]) -> int:
    """The stride in pixels of the coarsest feature maps, for images of shape (H, W, C)."""
    events = trace(model, variables, images_of(shape), train=False).events
    return math.ceil(
        max(
            (jump for event in events if event.seen is not None for jump in event.seen.stride()),
            default=1,
        )
        or 1
    )


def sliding(model: nn.Module, variables: Any, shape: tuple[int, ...]) -> Apply:
    """The network for larger images than it was trained on.

    Returns a function (variables, images [N, H, W, C]) -> logits [N, K], the mean over positions.

    A fully connected layer (`layers.Dense`) that sees h x w positions of a feature map at the
    training size becomes a convolution with h x w filters and the same parameters; later ones
    become 1x1 convolutions. Adaptive pooling that changes nothing at the training size is removed.
    A network that ends in global pooling is unchanged.

    Args:
      model: any Linen module.
      variables: their shapes are enough.
      shape: (H, W, C) of the training images.
    """
    model = _without_adaptive_pooling(model, variables, shape)
    windows: dict[tuple[str, ...], tuple[int, ...]] = {}

    def note(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if _is_dense(context):
            windows[context.module.path] = args[0].shape[1:-1]
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(functools.partial(model.apply, train=False), variables, images_of(shape))

    def slide(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if not _is_dense(context) or args[0].ndim == 2:
            return next_fun(*args, **kwargs)
        return _convolved(context.module, args[0], windows[context.module.path])

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        with nn.intercept_methods(slide):
            # Nothing is mutable, so the output comes alone.
            logits = cast(jax.Array, model.apply(variables, images, train=False))
        return (
            logits if logits.ndim == 2 else jnp.mean(logits, axis=tuple(range(1, logits.ndim - 1)))
        )

    return apply


def _is_dense(context: Any) -> bool:
    return isinstance(context.module, Dense) and context.method_name == "__call__"


def _convolved(layer: Dense, x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """A fully connected layer for a `window` of positions, slid over feature maps.

    [N, *spatial, C] -> [N, *output, K].
    """
    params = layer.variables["params"]
    x, kernel, bias = promote_dtype(x, params["kernel"], params["bias"], dtype=layer.dtype)
    window = window or (1,) * (x.ndim - 2)
    kernel = kernel.reshape(*window, x.shape[-1], kernel.shape[-1])
    return convolve(x, kernel, layer="/".join(layer.path)) + bias.reshape(
        (1,) * (x.ndim - 1) + (-1,)
    )


def _without_adaptive_pooling(
    model: nn.Module, variables: Any, shape: tuple[int, ...]
) -> nn.Module:
    if not isinstance(model, Text):
        return model
    noted = jax.eval_shape(functools.partial(features, model), variables, images_of(shape))
    kept, before = [], (1, *shape)
    names = [name for name, _ in name_layers(parse(model.text), model.by_stage)]
    for name, layer in zip(names, expand(parse(model.text)), strict=True):
        after = noted[name].shape if name in noted else before
        if layer.kind != "adaptpool" or after != before:
            kept.append(str(layer))
        before = after
    return model.clone(text=" ".join(kept))
