"""Weights that Keras has written: what `save` and `save_weights` make, of version 2 and 3.

file                          holds
.h5, of version 2             layers by name; a whole model has them in model_weights
.weights.h5, of version 3     layers/conv2d_1/vars/0: classes of layers, counted in their order
.keras                        a zip of model.weights.h5, and config.json with the layers' names

Here each is {"conv1_conv/kernel": array}, in Keras' order of axes. h5py reads them; nothing that a
file names is run. Without config.json the layers of version 3 have no names of their own.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.errors import UserError, needing_extras
from jaxconv.weights.pickled import reraise_damage

HDF5 = b"\x89HDF\r\n\x1a\n"
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
# The weights of a layer of version 3 in the order of their numbers, without those that its config
# says it has not.
_VARIABLES = {
    "Conv2D": ("kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "DepthwiseConv2D": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Normalization": ("mean", "variance", "count"),
}
_WITHOUT = {"bias": "use_bias", "beta": "center", "gamma": "scale"}


def is_keras_archive(archive: zipfile.ZipFile) -> bool:
    """Whether an archive is one of Keras 3."""
    return {_WEIGHTS, _CONFIG} <= set(archive.namelist())


def read_keras(file: Path, archive: zipfile.ZipFile | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file by `LAYER/VARIABLE`.

    Args:
      file: HDF5, or what `archive` is read from.

    Raises:
      UserError: h5py is not installed, the file is damaged, or its layers have no names.
    """
    with needing_extras("reading Keras' weights"):
        import h5py

    with reraise_damage(file, "Keras' weights"):
        given: Any = file if archive is None else io.BytesIO(archive.read(_WEIGHTS))
        with h5py.File(given, "r") as opened:
            if archive is not None:
                return _of_version_3(opened, json.loads(archive.read(_CONFIG)))
            group = opened.get("model_weights", opened)
            if layers := list(_listed(group, "layer_names")):
                return dict(_of_version_2(group, layers))
            keys = ", ".join(list(opened)[:3]) or "nothing"
    why = "it has no list of layers"
    if "layers" in keys:
        why = "weights of Keras 3 alone, without the names of their layers"
    raise UserError(
        f"{file}: {why}, but {keys}; save the whole model: model.save('NEW.keras')", exit_code=1
    )


def _listed(group: Any, name: str) -> Iterator[str]:
    """Names that a group lists; long lists are in parts, `layer_names0` and so on."""
    parts = [name] if name in group.attrs else [f"{name}{n}" for n in range(len(group.attrs))]
    for part in parts:
        for one in group.attrs.get(part, ()):
            yield one.decode() if isinstance(one, bytes) else str(one)


def _of_version_2(group: Any, layers: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    for layer in layers:
        for name in _listed(group[layer], "weight_names"):
            variable = name.rsplit("/", 1)[-1].partition(":")[0].removeprefix("depthwise_")
            # DenseNet's layers were once called conv1/conv, now conv1_conv.
            yield f"{layer.replace('/', '_')}/{variable}", group[layer][name][()]


def _of_version_3(opened: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays by the names that the config gives their layers."""
    found: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for layer in config["config"]["layers"]:
        kind, settings = str(layer["class_name"]), layer["config"]
        snake = _snake(kind)
        number = counts[snake] = counts.get(snake, -1) + 1
        place = f"layers/{snake}{f'_{number}' if number else ''}/vars"
        arrays = opened.get(place, {})
        names = [n for n in _VARIABLES.get(kind, ()) if settings.get(_WITHOUT.get(n, ""), True)]
        if len(names) != len(arrays):
            raise ValueError(
                f"layer {settings['name']!r}, {kind}, has {len(arrays)} arrays; known are "
                + ", ".join(_VARIABLES)
            )
        found |= {f"{settings['name']}/{name}": arrays[str(n)][()] for n, name in enumerate(names)}
    return found


def _snake(name: str) -> str:
    """`batch_normalization` of BatchNormalization, `conv2d` of Conv2D, as Keras does it."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
