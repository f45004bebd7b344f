"""An entry of the registry: how a network is built, and what was published about it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn


class Required:
    """What `model_arguments` gives for an argument without a default."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One network.

    Attributes:
      module: the Linen module.
      arguments: fields that make the module this network; any of them can be overridden.
      year: of the first publication.
      paper: authors, year and where to find it.
      input_size: (H, W, C) of the published network.
      errors: published top-1 and top-5 error in %, on ILSVRC's validation images unless `data` says
        otherwise; None if unknown.
      data: what the errors were measured on.
      classes: of the published network; 0 for ImageNet's 1000, or 10 for small images.
    """

    module: Callable[..., nn.Module]
    arguments: dict[str, Any]
    year: int
    paper: str
    input_size: tuple[int, ...] = (224, 224, 3)
    errors: tuple[float | None, ...] | None = None
    data: str = "ILSVRC 2012 validation, one crop"
    classes: int = 0
