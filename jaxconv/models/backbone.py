"""Networks that are a head on the feature maps of another network, their backbone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxconv.models.levels import maps_by_stride
from jaxconv.models.network import Network


class OnBackbone(Network):
    """The base class of segmentation networks and detectors.

    `create_model` takes the backbone's name and makes it, without classes, with the norm and the
    output stride given here.

    Attributes:
      backbone: any network with feature maps.
      maps: names of the maps that the head reads; by default those at the strides of `wanted`.
    """

    backbone: nn.Module | None = None
    maps: Sequence[str] = ()

    @classmethod
    def wanted(cls, strides: Sequence[int]) -> Sequence[int]:
        """The strides of the maps that the head reads, of those the backbone has."""
        raise NotImplementedError(f"{cls.__name__} has no wanted(strides)")

    @classmethod
    def assembled(cls, arguments: Mapping[str, Any], build: Callable[..., Any]) -> dict[str, Any]:
        """The arguments of the module, from those of `create_model`.

        Args:
          arguments: with `backbone`, its name, and `backbone_kwargs`, its own arguments.
          build: makes a network of the registry without classes: (name, **arguments).
        """
        arguments = dict(arguments)
        kwargs = {**arguments.pop("backbone_kwargs", {})}
        shared = {name: arguments[name] for name in ("norm", "frozen_norm") if name in arguments}
        plain = build(arguments["backbone"], **shared, **kwargs)
        if not arguments.get("maps"):
            levels = maps_by_stride(plain)
            wanted = cls.wanted(tuple(levels))
            if missing := [stride for stride in wanted if stride not in levels]:
                known = ", ".join(f"{name} ({stride})" for stride, name in levels.items())
                raise ValueError(
                    f"the backbone {arguments['backbone']} has no map at stride {missing[0]}; its "
                    f"maps are {known}: name those for strides {', '.join(map(str, wanted))} as "
                    "maps"
                )
            arguments["maps"] = tuple(levels[stride] for stride in wanted)
        if arguments.get("output_stride"):
            shared["output_stride"] = arguments["output_stride"]
        return arguments | {"backbone": build(arguments["backbone"], **shared, **kwargs)}

    def spacings(self) -> tuple[int, ...]:
        """None of its own: `output_stride` is its backbone's."""
        return ()

    def seen(self, x: jax.Array, train: bool, count: int | None = None) -> list[jax.Array]:
        """The first `count` of the backbone's maps, by default all, in the order of `maps`."""
        if self.backbone is None:
            raise ValueError(f"{type(self).__name__} needs a backbone; see create_model")
        names = tuple(self.maps[:count])
        found = self.backbone(x, train=train, features=names)
        return [found[name] for name in names]
