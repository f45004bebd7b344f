"""Weights out again, as files that torchvision and timm load: our variables under torchvision's
names, in safetensors or in what `torch.save` writes, made without torch.

jaxconv export --workdir=RUN --out=DIR --format=safetensors
torchvision.models.resnet18(num_classes=10).load_state_dict(load_file("DIR/model.safetensors"))

DIR/model.safetensors or model.pth    the arrays, bit for bit those of the checkpoint
DIR/network.json                      network, classes, preprocessing, step: `init_from=DIR` uses it
"""

import dataclasses
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxconv.errors import UserError, nearest, some
from jaxconv.files import check_new, expand, new_folder
from jaxconv.train.ensemble import members_of
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import opened_config, saved_data, write_json
from jaxconv.version import __version__
from jaxconv.weights.detector_names import is_transposed
from jaxconv.weights.names import SCHEMES, keys_of
from jaxconv.weights.naming import name_modules, names_of
from jaxconv.weights.preprocessing import preprocessing_in
from jaxconv.weights.pretrained import EXPORTED
from jaxconv.weights.torchvision import flattened_channels

FORMATS = {"safetensors": "model.safetensors", "torch": "model.pth"}
# ConvNeXt's blocks: our 1x1 convolutions that are linear layers there; and a block's own scale,
# which has two further axes there.
_LINEAR, _SCALE = r"res\d_\d+/(expand|project)", r"res\d_\d+"


def to_torchvision(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our variables as torchvision's state dict: float32 arrays by its names, in its order of axes.

    `load_torchvision` gives them back, bit for bit. PyTorch's counters `num_batches_tracked` are
    left out, as PyTorch allows.

    Args:
      name: of the network.
      variables: `params` and other collections.

    Raises:
      ValueError: torchvision has no network of this layout, or not all of its variables.
    """
    # Flax types its keys as tuples, which they are without `sep`.
    flat: dict[str, Any] = flatten_dict(dict(variables), sep="/")  # pyright: ignore
    modules = {path: path.split("/", 1)[1].rsplit("/", 1)[0] for path in flat}
    names = names_of(SCHEMES["torchvision"].families, name)
    if names is None:
        raise ValueError(f"torchvision has no network in the layout of {name!r}")
    known = name_modules(names, name, sorted(set(modules.values())))
    if unknown := sorted(set(modules.values()) - known.keys() - {"scale"}):
        raise ValueError(f"torchvision's {name} has nothing like {some(unknown)}")
    keys = keys_of(name, flat, "torchvision")
    return {
        keys[path]: _turned_back(np.asarray(value, np.float32), name, modules[path])
        for path, value in flat.items()
    }


def _turned_back(value: np.ndarray, name: str, module: str) -> np.ndarray:
    """One array in PyTorch's order of axes; see the table of torchvision.py."""
    convnext = name.startswith("convnext")
    if value.ndim == 4 and is_transposed(module):
        value = value[::-1, ::-1].transpose(2, 3, 0, 1)
    elif value.ndim == 4 and convnext and re.fullmatch(_LINEAR, module):
        value = value[0, 0].T
    elif value.ndim in (4, 5):
        value = np.moveaxis(value, (-1, -2), (0, 1))
    elif value.ndim == 2 and (channels := flattened_channels(name, module)):
        # [positions * C, K] -> [K, C * positions]
        value = value.reshape(-1, channels, value.shape[1]).transpose(2, 1, 0)
        value = value.reshape(len(value), -1)
    elif value.ndim == 2:
        value = value.T
    elif convnext and re.fullmatch(_SCALE, module):
        value = value[:, None, None]
    return np.ascontiguousarray(value)


def export_weights(
    workdir: str, out: str, checkpoint: str = "latest", form: str = "safetensors"
) -> dict[str, Any]:
    """Write the weights of a run under torchvision's names; returns the contents of network.json.

    Args:
      workdir: of the run; the weights are the averaged ones if it has averages.
      out: a new or empty folder; it is written completely or not at all.
      checkpoint: `latest`, `best`, or a step.
      form: one of `FORMATS`.

    Raises:
      UserError: the run or the checkpoint does not exist, torchvision has no such network, or the
        folder cannot be written.
    """
    if form not in FORMATS:
        raise UserError(
            f"--format={form}: unknown{nearest(form, FORMATS)}; choose {', '.join(FORMATS)}"
        )
    check_new(out)
    folder = expand(workdir)
    config, data = opened_config(folder), saved_data(folder)
    if members_of(config):
        raise UserError(
            f"--workdir={workdir}: holds an ensemble, whose members torchvision cannot load "
            "together; `jaxconv export` without --format exports it as one program"
        )
    state, step = restore_run(folder, checkpoint, config=config)
    try:
        arrays = to_torchvision(config.model.name, state.variables)
    except ValueError as error:
        raise UserError(f"--format={form}: {error}", exit_code=1) from error
    description = {
        "model": config.model.name,
        "class_names": data["class_names"],
        "step": step,
        "jaxconv": __version__,
        "preprocessing": dataclasses.asdict(preprocessing_in(config)),
    }
    with new_folder(out) as written:
        if form == "safetensors":
            from safetensors.numpy import save_file

            save_file(arrays, written / FORMATS[form], metadata={"format": "pt"})
        else:
            write_torch(written / FORMATS[form], arrays)
        write_json(written / EXPORTED, description)
    return description


def write_torch(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of float32 as `torch.save` writes a dictionary of tensors.

    `torch.load(file, weights_only=True)` reads it.
    """
    root = file.stem
    numbers = (np.ascontiguousarray(array, "<f4").tobytes() for array in arrays.values())
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, content: bytes) -> None:
            # Without today's date, so that the same arrays give the same file.
            archive.writestr(zipfile.ZipInfo(f"{root}/{name}"), content)

        put("data.pkl", _pickled(arrays))
        put("byteorder", b"little")
        for key, content in enumerate(numbers):
            put(f"data/{key}", content)
        put("version", b"3\n")


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of the dictionary, in which each tensor is a call of torch's function:

    _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, OrderedDict())

    Pickling it needs torch, so that its few instructions are put together here.
    """
    parts = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT]
    for key, (name, array) in enumerate(arrays.items()):
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        storage = [
            _text("storage"),
            _global("torch", "FloatStorage"),
            *(_text(str(key)), _text("cpu"), _number(array.size)),
        ]
        arguments = [
            *(*_tuple(storage), pickle.BINPERSID, _number(0)),
            *(*_tuple(map(_number, array.shape)), *_tuple(map(_number, strides)), pickle.NEWFALSE),
            *(_global("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE),
        ]
        parts += [_text(name), _global("torch._utils", "_rebuild_tensor_v2")]
        parts += [*_tuple(arguments), pickle.REDUCE, pickle.SETITEM]
    return b"".join([*parts, pickle.STOP])


def _tuple(parts: Any) -> Sequence[bytes]:
    return [pickle.MARK, *parts, pickle.TUPLE]


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
