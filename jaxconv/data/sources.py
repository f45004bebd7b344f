"""Sources: what an example is. A name in the config opens one.

xo            the lecture's X's and O's, drawn on the spot (data/xo.py)
folder:PATH   image files in folders named after their classes (data/folder.py)
"""

import dataclasses
from typing import Any

import numpy as np

from jaxconv.errors import UserError, nearest, short


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled images in memory.

    Attributes:
      images: [N, H, W, C] uint8.
      labels: [N] int32, indices into `class_names`.
      class_names: one name a class.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.images[i], "label": self.labels[i]}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.images.shape[1:]


def open_source(config: Any, split: str, like: Source | dict | None = None) -> Source:
    """Open one split of the source that `config` (the `data` part of a config) names.

    Args:
      config: `config.data`.
      split: the split's name.
      like: a `description` that this split must agree with, so that a test split is read as its training split was.

    Raises:
      UserError: no such source or split, or files that cannot be used.
    """
    from jaxconv.data import folder, xo

    kind, _, rest = config.source.partition(":")
    if kind == "xo" and not rest:
        source = xo.draw_split(split, **config.xo)
    elif kind == "folder":
        shape = like["image_shape"] if like else None
        source = folder.read_split(rest, split, config, channels=shape[-1] if shape else 0)
    else:
        raise UserError(f"no source is called {config.source!r}{nearest(kind, ['xo', 'folder:PATH'])}; there are xo and folder:PATH")
    if like:
        found = describe(source)
        for what in ("class_names", "image_shape"):
            if found[what] != like[what]:
                raise UserError(
                    f"{config.source}: the {what.replace('_', ' ')} of split {split!r} are {short(found[what])}, "
                    f"where the network was trained with {short(like[what])}",
                    exit_code=1,
                )
    return source


def describe(source: Source) -> dict[str, Any]:
    """What a network depends on: the image's shape and the names of the classes, as plain lists for JSON."""
    return {"image_shape": list(source.image_shape), "class_names": list(source.class_names)}
