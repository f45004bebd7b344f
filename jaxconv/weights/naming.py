"""How a table names modules: our module's path -> another library's, by patterns.

    r"conv(\\d+)_(\\d+)/conv(\\d)/norm": "layer{0-1}.{1-1}.bn{2}"

The first pattern that matches a whole path is used. {0}, {1} are its groups as `_fill` formats
them: {0-1} is one less, {0=} is unchanged, and so on. `conv` and `norm` become 0 and 1, their
places in a sequence; {0+3} begins to count at 3.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

# A table; or a function of our network's name and its modules, where a table cannot say it.
Names = Mapping[str, str] | Callable[[str, list[str]], dict[str, str]]
# A regular expression of the names of our networks -> how their modules are called.
Families = Mapping[str, Names]

SEQUENCE = {"conv": "0", "norm": "1", "reduce": "fc1", "expand": "fc2"}
PYTORCH = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How one library, or one author, names what networks learn.

    Attributes:
      families: its names of modules.
      leaves: its names of our leaves, such as `kernel`.
      odd_leaves: the exceptions: a regular expression of `network/module/leaf` -> its name.
      separator: between a module and a leaf.
      bgr: a pattern of `network/module` whose kernel sees blue, green and red there, instead of
        red, green and blue.
      channels_last: its arrays have our order of axes, not PyTorch's; convolutions before a norm
        may have a bias, which goes into the norm's mean.
      unused: a pattern of its names that are no weights of the network.
    """

    families: Families
    leaves: Mapping[str, str] = dataclasses.field(default_factory=lambda: PYTORCH)
    odd_leaves: Mapping[str, str] = dataclasses.field(default_factory=dict)
    separator: str = "."
    bgr: str = ""
    channels_last: bool = False
    unused: str = ""


def names_of(families: Families, network: str) -> Names | None:
    """How a network's modules are called; None if these families do not have it."""
    return next((names for of, names in families.items() if re.fullmatch(of, network)), None)


def name_modules(names: Names, network: str, modules: list[str]) -> dict[str, str]:
    """The name of each of our modules that has one."""
    return names(network, modules) if callable(names) else by_table(names, modules)


def by_table(table: Mapping[str, str], modules: Iterable[str]) -> dict[str, str]:
    """The names of the modules that a pattern of the table matches."""
    named = {}
    for module in modules:
        for pattern, template in table.items():
            if match := re.fullmatch(pattern, module):
                named[module] = _fill(template, match.groups())
                break
    return named


def _fill(template: str, found: tuple[str, ...]) -> str:
    """Fill a template with a pattern's groups; the suffix after the number says how."""
    ways = {
        "": lambda v: SEQUENCE.get(v, v),
        "=": lambda v: v,
        "a": lambda v: "abc"[int(v) - 1],
        "*": lambda v: str(2 * (int(v) - 2) + 1),
        "/": lambda v: str(2 * (int(v) - 2)),
        "bn": lambda v: {"conv": "conv", "norm": "bn"}[v],
        "mlp": lambda v: {"expand": "fc1", "project": "fc2"}[v],
        "x2": lambda v: str(2 * (int(v) - 1)),
        "x3": lambda v: str(3 * (int(v) - 1)),
        "x3+1": lambda v: str(3 * (int(v) - 1) + 1),
        "x3+2": lambda v: str(3 * (int(v) - 1) + 2),
        "part": lambda v: {"reduce": "0", "depthwise": "1", "project": "2"}[v],
        "tower": lambda v: {
            "classes": "classification_head",
            "logits": "classification_head",
            "boxes": "regression_head",
            "codes": "regression_head",
        }[v],
        "seg": lambda v: {"head": "classifier", "aux": "aux_classifier"}[v],
    }

    def fill(match: re.Match) -> str:
        way, value = match[2], found[int(match[1])]
        if re.fullmatch(r"[+-]\d+", way):
            return str(int(SEQUENCE.get(value, value)) + int(way))
        return ways[way](value)

    return re.sub(r"\{(\d)([^}]*)\}", fill, template)
