"""Weights from outside: read a file, turn it into ours, and keep it in a folder to start from.

jaxconv convert resnet50.pth --model=resnet50 --out=DIR
jaxconv train ... --config.model.name=resnet50 --config.model.init_from=DIR
"""

import logging
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.errors import UserError, in_words, short
from jaxconv.files import expand
from jaxconv.models import usual_task
from jaxconv.train.initial import save_weights
from jaxconv.weights.torchvision import load_torchvision

log = logging.getLogger(__name__)

# Under which key files of well-known training scripts keep the state dict, and what they put before
# its names.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(file: Path) -> dict[str, np.ndarray]:
    """Arrays by name from a `.safetensors` file, or, where torch is installed, from a `.pth` or
    `.pt` file.

    Raises:
      UserError: there is no such file, it is none of these, it is damaged, or torch is not there.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file", exit_code=1)
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(file)
        except (SafetensorError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: cannot be read as safetensors ({in_words(error)})", exit_code=1
            ) from error
    if file.suffix not in (".pth", ".pt"):
        raise UserError(f"{file}: must end in .safetensors, .pth or .pt", exit_code=1)
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file}: reading it needs torch, which is not installed here. Where it is, this "
            "writes a file that needs none: "
            'python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load({file.name!r}, weights_only=True), "
            f"'{file.stem}.safetensors')\"",
            exit_code=1,
        ) from error
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{file}: cannot be read as weights of PyTorch ({in_words(error)})",
            exit_code=1,
        ) from error
    return {
        name: value.float().numpy()
        for name, value in _state_dict_in(file, loaded, torch.Tensor).items()
    }


def _state_dict_in(file: Path, loaded: Any, tensor: type) -> dict[str, Any]:
    """The state dict, out of what a training script has wrapped it in."""
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if (
        not isinstance(loaded, Mapping)
        or not loaded
        or not all(isinstance(value, tensor) for value in loaded.values())
    ):
        raise UserError(
            f"{file}: holds {short(type(loaded).__name__)}, not a state dict of tensors",
            exit_code=1,
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in loaded):
            loaded = {name.removeprefix(prefix): value for name, value in loaded.items()}
    return dict(loaded)


def convert(file: str, model: str, out: str) -> dict[str, Any]:
    """Turn a file of torchvision's weights into a folder that `config.model.init_from` takes;
    returns what weights.json says.

    Raises:
      UserError: the file or the folder cannot be used, or entries are missing, left over or
        misshapen; then nothing is written.
    """
    try:
        usual_task(model)
    except ValueError as error:
        raise UserError(f"--model={model}: {error}") from error
    path = expand(file, "FILE")
    state_dict = read_state_dict(path)
    try:
        variables = load_torchvision(model, state_dict)
    except ValueError as error:
        raise UserError(f"{file}: {error}", exit_code=1) from error
    return save_weights(
        out, model, variables, f"{path.name}, CRC-32 {zlib.crc32(path.read_bytes()):08x}"
    )
