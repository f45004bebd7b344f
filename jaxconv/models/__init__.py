"""The registry of networks: a name gives a Linen module.

model = create_model("chain", num_classes=2, filters=(8, 16))
variables = model.init(key, images, train=False)
votes = model.apply(variables, images, train=False)
"""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxconv.errors import nearest
from jaxconv.models.chain import Chain

MODELS: dict[str, Callable[..., nn.Module]] = {"chain": Chain}

# What every network is given by `create_model`, and so no argument of its own.
_GIVEN = {"num_classes", "dtype", "axis_name", "parent", "name"}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern such as `resnet*`, sorted."""
    return sorted(fnmatch.filter(MODELS, pattern))


def model_arguments(name: str) -> dict[str, Any]:
    """The network's own arguments and their defaults.

    Raises:
      ValueError: no such network; the message names the nearest.
    """
    return {f.name: f.default for f in dataclasses.fields(_lookup(name)) if f.name not in _GIVEN}


def create_model(name: str, num_classes: int, dtype: Any = jnp.float32, axis_name: str | None = None, **overrides: Any) -> nn.Module:
    """Build a network by its name.

    Args:
      name: one of `list_models()`.
      num_classes: votes to return.
      dtype: the compute type; parameters, BatchNorm statistics and votes stay float32.
      axis_name: under `pmap`, the axis over which BatchNorm takes its statistics.
      **overrides: the network's own arguments, see `model_arguments`.

    Raises:
      ValueError: no such network, or it has no such argument; the message names the nearest.
    """
    known = model_arguments(name)
    for key in overrides:
        if key not in known:
            raise ValueError(f"{name} has no argument {key!r}{nearest(key, known)}; it has {', '.join(known)}")
    return _lookup(name)(num_classes=num_classes, dtype=jnp.dtype(dtype), axis_name=axis_name, **overrides)


def _lookup(name: str) -> Callable[..., nn.Module]:
    if name not in MODELS:
        raise ValueError(f"no network is called {name!r}{nearest(name, MODELS)}; there are {', '.join(list_models())}")
    return MODELS[name]
