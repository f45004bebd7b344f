"""Convert a file of weights from other frameworks into a folder to start training from.

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

# Keys under which well-known training scripts store the state dict, and the prefixes of its names.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(file: Path) -> dict[str, np.ndarray]:
    """Read arrays by name from a `.safetensors` file, or with torch from a `.pth` or `.pt` file.

    Raises:
      UserError: the file does not exist, has another type or is damaged, or torch is not installed.
    """
    if not file.is_file():
        raise UserError(f"{file}: the file does not exist", exit_code=1)
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
            f"{file}: reading it requires torch, which is not installed. On a machine with torch, "
            "this writes a file that can be read without it: "
            'python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load({file.name!r}, weights_only=True), "
            f"'{file.stem}.safetensors')\"",
            exit_code=1,
        ) from error
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{file}: cannot be read as PyTorch weights ({in_words(error)})",
            exit_code=1,
        ) from error
    return {
        name: value.float().numpy()
        for name, value in _state_dict_in(file, loaded, torch.Tensor).items()
    }


def _state_dict_in(file: Path, loaded: Any, tensor: type) -> dict[str, Any]:
    """Unwrap the state dict from what a training script saved."""
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if (
        not isinstance(loaded, Mapping)
        or not loaded
        or not all(isinstance(value, tensor) for value in loaded.values())
    ):
        raise UserError(
            f"{file}: contains {short(type(loaded).__name__)}, not a state dict of tensors",
            exit_code=1,
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in loaded):
            loaded = {name.removeprefix(prefix): value for name, value in loaded.items()}
    return dict(loaded)


def convert(file: str, model: str, out: str) -> dict[str, Any]:
    """Convert a file of torchvision's weights into a folder for `config.model.init_from`.

    Returns:
      The contents of weights.json.

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
