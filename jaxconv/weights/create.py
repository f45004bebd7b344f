"""A network by its name, and with `pretrained` also the weights that others have trained."""

import os
from typing import Any, Literal, overload

import jax.numpy as jnp

from jaxconv import lazy, models
from jaxconv.models.network import Network


@overload
def create_model(
    name: str,
    num_classes: int,
    dtype: Any = ...,
    axis_name: str | None = ...,
    norm_groups: int = ...,
    *,
    pretrained: Literal[False] = ...,
    **overrides: Any,
) -> Network: ...
@overload
def create_model(
    name: str,
    num_classes: int | None = ...,
    dtype: Any = ...,
    axis_name: str | None = ...,
    norm_groups: int = ...,
    *,
    pretrained: Literal[True] | str | os.PathLike[str],
    **overrides: Any,
) -> tuple[Network, dict[str, Any]]: ...
def create_model(
    name: str,
    num_classes: int | None = None,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    norm_groups: int = 1,
    *,
    pretrained: bool | str | os.PathLike[str] = False,
    **overrides: Any,
) -> Any:
    """Build a network by its name; with `pretrained`, return (network, variables).

    Args:
      name: one of `list_models()`, `text:` followed by a text in the notation, or a custom
        network, see jaxconv/own.py.
      num_classes: logits to return; 0 returns the input of the last layer, the features. With
        `pretrained`, those of the weights by default; for another number the last layer is newly
        initialized.
      dtype: the compute type; parameters, BatchNorm statistics and logits stay float32.
      axis_name: under `pmap`, the axis over which BatchNorm takes its statistics.
      norm_groups: number of parts of the batch that BatchNorm normalises separately, see
        `layers.BatchNorm`.
      pretrained: True for the usual published weights, a tag such as `tv2_in1k`,
        `hf:OWNER/REPO@REVISION`, a file or a folder, see weights/pretrained.py. `jaxconv weights`
        lists them. The variables are float32 numpy arrays.
      **overrides: the network's own arguments, see `model_arguments`.

    Raises:
      ValueError: the network or an argument is unknown (the message names the nearest), its norm or
        output stride cannot be that, or the weights cannot be had or do not fit.

    >>> import jax, jaxconv
    >>> model = jaxconv.create_model("resnet20_cifar", num_classes=10, norm="group")
    >>> images = jnp.ones((2, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> model.apply(variables, images, train=False).shape
    (2, 10)
    """
    settings = {"dtype": dtype, "axis_name": axis_name, "norm_groups": norm_groups, **overrides}
    if pretrained is False:
        if num_classes is None:
            raise TypeError("create_model() needs num_classes, but for pretrained weights")
        return models.create_model(name, num_classes, **settings)
    create = lazy.load("jaxconv.weights.pretrained:create_pretrained")
    return create(name, "True" if pretrained is True else pretrained, num_classes, **settings)
