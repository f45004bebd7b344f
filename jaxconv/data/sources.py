"""Sources: what an example is. A name in the config opens one.

xo            the lecture's X's and O's, drawn on the spot (data/xo.py)
folder:PATH   image files in folders named after their classes (data/folder.py)
"""

from typing import Any

from jaxconv.data import folder, xo
from jaxconv.data.interface import Source, describe
from jaxconv.errors import UserError, nearest, short


def open_source(config: Any, split: str, like: Source | dict | None = None) -> Source:
    """Open one split of the source that `config` (the `data` part of a config) names.

    Args:
      config: `config.data`.
      split: the split's name.
      like: a `description` that this split must agree with, so that a test split is read as its training split was.

    Raises:
      UserError: no such source or split, or files that cannot be used.
    """
    kind, _, rest = config.source.partition(":")
    if kind == "xo" and not rest:
        if config.image_size:
            raise UserError(f"config.data.image_size is {config.image_size}; the size of X's and O's is config.data.xo.size")
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
