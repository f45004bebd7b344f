"""The registry of networks: Linen modules by name.

model = create_model("resnet50", num_classes=10)
variables = model.init(key, images, train=False)
logits = model.apply(variables, images, train=False)
maps = features(model, variables, images)          # {"conv1": ..., "pool1": ...}
maps = model.apply(variables, images, train=False, features=("conv3", "conv5"))
"""

import dataclasses
import fnmatch
import functools
import inspect
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.errors import nearest
from jaxconv.models import (
    airbench,
    chain,
    convnext,
    csp,
    densenet,
    efficientnet,
    efficientnet_v2,
    fcos,
    googlenet,
    inception,
    mnasnet,
    mobilenet,
    nfnet,
    rcnn,
    regnet,
    repvgg,
    resnet,
    resnet_variants,
    retinanet,
    segmentation,
    shufflenet,
    squeezenet,
    ssd,
    text,
    unet,
    video,
    xception,
)
from jaxconv.models.bridge import linen, unwrapped
from jaxconv.models.network import Network
from jaxconv.models.registry import REQUIRED, Entry
from jaxconv.models.requested import EVERY
from jaxconv.models.text import from_text
from jaxconv.own import check_takes, is_own, own

MODELS: dict[str, Entry] = {
    name: entry
    for family in (
        chain,
        text,
        googlenet,
        inception,
        resnet,
        resnet_variants,
        densenet,
        squeezenet,
        mobilenet,
        mnasnet,
        shufflenet,
        efficientnet,
        efficientnet_v2,
        regnet,
        repvgg,
        convnext,
        nfnet,
        csp,
        xception,
        airbench,
        video,
        segmentation,
        unet,
        retinanet,
        fcos,
        rcnn,
        ssd,
    )
    for name, entry in family.MODELS.items()
}

# Fields that `create_model` sets for every network, or that are functions; they are not its own
# arguments.
_GIVEN = {"num_classes", "dtype", "axis_name", "norm_groups", "parent", "name", "choices"}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern such as `resnet*`, sorted.

    >>> list_models("resnet*_cifar")[:2]
    ['resnet110_cifar', 'resnet20_cifar']
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def model_arguments(name: str) -> dict[str, Any]:
    """The network's own arguments and their defaults; `registry.REQUIRED` where there is none.

    Raises:
      ValueError: the network is unknown; the message names the nearest.
    """
    entry = _lookup(name)
    defaults = {
        name: default for name, default in _fields(entry.module).items() if name not in _GIVEN
    }
    return defaults | entry.arguments


def create_model(
    name: str,
    num_classes: int,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    norm_groups: int = 1,
    **overrides: Any,
) -> Network:
    """Build a network by its name.

    Args:
      name: one of `list_models()`, `text:` followed by a text in the notation, or a custom
        network, see jaxconv/own.py.
      num_classes: logits to return; 0 returns the input of the last layer, the features.
      dtype: the compute type; parameters, BatchNorm statistics and logits stay float32.
      axis_name: under `pmap`, the axis over which BatchNorm takes its statistics.
      norm_groups: number of parts of the batch that BatchNorm normalises separately, see
        `layers.BatchNorm`.
      **overrides: the network's own arguments, see `model_arguments`.

    Raises:
      ValueError: the network or an argument is unknown (the message names the nearest), or its
        norm or output stride cannot be that.
    """
    known, entry = model_arguments(name), _lookup(name)
    for key in overrides:
        if key not in known and not _takes_any(entry.module):
            raise ValueError(
                f"{name} has no argument {key!r}{nearest(key, known)}; it has "
                f"{', '.join(known) or 'none'}"
            )
    fields = {
        "num_classes": num_classes,
        "dtype": jnp.dtype(dtype),
        "axis_name": axis_name,
        "norm_groups": norm_groups,
    }
    if is_own(name):
        # A custom network need not take the settings for several devices.
        fields = {
            key: value
            for key, value in fields.items()
            if key in ("num_classes", "dtype") or key in _fields(entry.module)
        }
        required = [key for key, default in known.items() if default is REQUIRED]
        given = dict.fromkeys(required) | overrides | fields
        check_takes(entry.module, name, "config.model.name", **given)
    for key, default in known.items():
        if default is REQUIRED and key not in overrides:
            raise ValueError(
                f"{name} needs the argument {key!r}, which has no default; in a config, set "
                f"config.model.kwargs.{key}"
            )
    make = from_text if entry.module is text.Text else entry.module
    arguments = {**entry.arguments, **overrides, **fields}
    if overrides.get("backbone", arguments.get("backbone")) != entry.arguments.get("backbone"):
        # The published arguments are those of the published backbone, its norm too.
        own = {"backbone_kwargs": {}, "maps": (), **overrides}
        arguments = {key: value for key, value in arguments.items() if key != "norm"} | own
    if assembled := getattr(make, "assembled", None):
        settings = {"dtype": dtype, "axis_name": axis_name, "norm_groups": norm_groups}
        arguments = assembled(arguments, functools.partial(create_model, num_classes=0, **settings))
    model = make(**arguments)
    if isinstance(model, Network):
        model.check()
    # Any other Linen module is a custom network, which has what it has.
    return cast(Network, model)


def _fields(make: Any) -> dict[str, Any]:
    """Parameters and defaults of a module's class, or of a function that builds a module."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: REQUIRED if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind in named
    }


def _takes_any(make: Any) -> bool:
    """Whether a function that builds a module takes arguments of any name, as **kwargs."""
    kinds = [parameter.kind for parameter in inspect.signature(make).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _lookup(name: str) -> Entry:
    if is_own(name):
        return Entry(own(name, "config.model.name"), {}, 0, "")
    if name.startswith("text:"):
        return Entry(text.Text, {"text": name.removeprefix("text:")}, 0, "")
    if name not in MODELS:
        raise ValueError(
            f"no network is called {name!r}{nearest(name, MODELS)}; `jaxconv.list_models()` lists "
            f"all {len(MODELS)}"
        )
    return MODELS[name]


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """Published facts about a network, see `registry.Entry`.

    `parameters` is their number with the published classes: 1,000, 10 for small images, or as
    `registry.Entry` has them.
    """

    name: str
    input_size: tuple[int, ...]
    year: int
    paper: str
    parameters: int
    errors: tuple[float | None, ...] | None
    data: str


def model_info(name: str) -> ModelInfo:
    """Published facts about a network; its parameters are counted without allocating them.

    Raises:
      ValueError: the network is unknown.
    """
    entry = _lookup(name)
    input_size, classes = usual_task(name)
    variables = abstract_variables(create_model(name, classes), (1, *input_size))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return ModelInfo(
        name, entry.input_size, entry.year, entry.paper, parameters, entry.errors, entry.data
    )


def usual_task(name: str) -> tuple[tuple[int, ...], int]:
    """The input (H, W, C) and the number of classes that a network was published for.

    A text may specify its own number of classes.

    Raises:
      ValueError: the network is unknown, or a text has a mistake.
    """
    entry = _lookup(name)
    own = text.outputs_of(entry.arguments["text"]) if entry.module is text.Text else None
    return entry.input_size, own or entry.classes or (1000 if entry.input_size[0] > 32 else 10)


def abstract_variables(model: Any, input_shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    """Shapes and dtypes of a Linen module's variables for inputs [N, *spatial, C].

    Nothing is allocated.
    """
    model, images = unwrapped(model), jax.ShapeDtypeStruct(input_shape, dtype)
    return jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)


def features(
    model: Network, variables: Any, x: jax.Array | np.ndarray, names: str | Sequence[str] = EVERY
) -> dict[str, jax.Array]:
    """The named feature maps of images [N, H, W, C] in inference mode, in the network's order.

    They have the paper's names. With `names`, only these, in their order: see
    `Network.__call__`. Under `jax.jit` the dict comes back sorted by name, as JAX sorts every dict.

    Raises:
      TypeError: the module does not take `features`.
      ValueError: there is no such feature map; the message names the nearest.

    >>> model = create_model("resnet20_cifar", 10)
    >>> images = jnp.ones((2, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> maps = features(model, variables, images, ("conv2", "conv4"))
    >>> maps["conv2"].shape, maps["conv4"].shape
    ((2, 32, 32, 16), (2, 8, 8, 64))
    """
    if "features" not in inspect.signature(type(linen(model)).__call__).parameters:
        raise TypeError(
            f"{type(model).__name__} does not take `features`, as jaxconv's networks do; the "
            "outputs of any Linen module's layers are "
            "jaxconv.inspect.inside.activations(module, variables, x)"
        )
    # Nothing is mutable, so the maps come alone.
    return cast(dict[str, jax.Array], model.apply(variables, x, train=False, features=names))
