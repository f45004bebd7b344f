"""What feature maps a network has before it runs: their channels, strides and receptive fields."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.errors import short
from jaxconv.models.bridge import unwrapped
from jaxconv.program import Tracer, call_arguments, trace
from jaxconv.receptive import Seen


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """A named feature map.

    Attributes:
      shape: without the batch axis.
      channels: number of channels.
      stride, field: in pixels, for each axis of the image.
    """

    shape: tuple[int, ...]
    channels: int
    stride: tuple[float, ...]
    field: tuple[float, ...]


def feature_info(model: nn.Module, input_shape: Sequence[int]) -> dict[str, FeatureMap]:
    """The feature maps that `jaxconv.features` returns, in order, before the network runs.

    `input_shape` is that of one image, such as (224, 224, 3).

    >>> import jaxconv
    >>> info = feature_info(jaxconv.create_model("resnet20_cifar", 10), (32, 32, 3))
    >>> info["conv2"].channels, info["conv2"].stride, info["conv2"].field
    (16, (1, 1), (15, 15))
    """
    model, x = unwrapped(model), jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    call = call_arguments(model, False, {})
    variables = jax.eval_shape(partial(model.init, **call), jax.random.key(0), x)
    return noted(trace(model, variables, x, **call))


def features_at(
    model: nn.Module, input_shape: Sequence[int], strides: Sequence[int] = (4, 8, 16, 32)
) -> dict[str, FeatureMap]:
    """The last feature map at each stride, by name, in the order of `strides`.

    What the neck of a segmentation or detection network is built on:

        levels = jaxconv.features_at(backbone, (224, 224, 3))
        channels = [level.channels for level in levels.values()]
        maps = backbone(images, train=train, features=tuple(levels))

    Args:
      model: one of jaxconv's networks, or a module that names its feature maps as they do.
      input_shape: of one image; large enough for the last map to have several positions.
      strides: in pixels, the same for all axes.

    Raises:
      ValueError: no map has such a stride; the message lists the available ones.
    """
    levels = {}
    for name, info in feature_info(model, input_shape).items():
        if len(info.shape) == len(input_shape) and len(set(info.stride)) == 1:
            levels[info.stride[0]] = (name, info)
    levels.pop(0, None)  # a single position
    for stride in strides:
        if stride not in levels:
            known = ", ".join(f"{at:g} ({name})" for at, (name, _) in levels.items())
            raise ValueError(
                f"no feature map of {type(unwrapped(model)).__name__} has stride {stride} for "
                f"images of {'x'.join(map(str, input_shape))}; there are {short(known, 300)}"
            )
    return dict(levels[stride] for stride in strides)


def noted(tracer: Tracer) -> dict[str, FeatureMap]:
    """The feature maps that a traced network names itself."""
    return {
        event.name: _feature_map(event.output.shape[1:], event.seen)
        for event in tracer.events
        if event.kind == "note" and event.call is tracer.root and event.seen is not None
    }


def _feature_map(shape: tuple[int, ...], seen: Seen) -> FeatureMap:
    return FeatureMap(shape, shape[-1], seen.stride(), seen.field())
