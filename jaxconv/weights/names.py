"""What others call what our networks learn: scheme -> family -> names of modules."""

import re
from collections.abc import Iterable

from jaxconv import moved
from jaxconv.weights.naming import Scheme, name_modules, names_of
from jaxconv.weights.other_names import AKAMASTER, CAFFE, KERAS, LITE
from jaxconv.weights.timm_names import TIMM
from jaxconv.weights.torchvision_names import TORCHVISION

# Of a network that has several, the first is the default.
SCHEMES: dict[str, Scheme] = {
    "torchvision": Scheme(
        TORCHVISION,
        odd_leaves={
            r"convnext\w+/res\d_\d+/scale": "layer_scale",
            r"ssd\w+/scale/\w+": "scale_weight",
        },
    ),
    "timm": TIMM,
    "akamaster": AKAMASTER,
    "efficientnet_lite_pytorch": LITE,
    "caffe": CAFFE,
    "keras": KERAS,
}


def schemes_of(network: str) -> list[str]:
    """The schemes that have names for a network of the registry."""
    return [of for of, has in SCHEMES.items() if names_of(has.families, network) is not None]


def keys_of(network: str, paths: Iterable[str], scheme: str = "") -> dict[str, str]:
    """The name of each of our variables, by path: `params/fc/kernel` is torchvision's `fc.weight`.

    Args:
      network: of the registry.
      paths: of its variables.
      scheme: one of `schemes_of` the network; by default the first.

    Raises:
      ValueError: there is none.
    """
    known = schemes_of(network)
    if not known:
        raise ValueError(
            f"torchvision has no network in the layout of {network!r}, nor has anyone else whose "
            "names are known here"
        )
    within = SCHEMES[scheme or known[0]]
    names = names_of(within.families, network)
    if names is None:
        raise ValueError(f"{scheme} has no network in the layout of {network!r}")
    parts = {path: path.split("/", 1)[1].rsplit("/", 1) for path in paths}
    named = name_modules(names, network, sorted({module for module, _ in parts.values()}))

    def leaf_of(module: str, leaf: str) -> str:
        path = f"{network}/{module}/{leaf}"
        odd = (to for of, to in within.odd_leaves.items() if re.fullmatch(of, path))
        return next(odd, "") or within.leaves[leaf]

    return {
        path: f"{named.get(module, module)}{within.separator}{leaf_of(module, leaf)}"
        for path, (module, leaf) in parts.items()
    }


__getattr__ = moved.names_of(__name__)
