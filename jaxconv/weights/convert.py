"""Convert a file of weights from other frameworks into a folder to start training from.

jaxconv convert resnet50.pth --model=resnet50 --out=DIR
jaxconv train ... --config.model.name=resnet50 --config.model.init_from=DIR
"""

import dataclasses
import functools
import zlib
from pathlib import Path
from typing import Any

from jaxconv import moved
from jaxconv.errors import UserError
from jaxconv.files import check_new, expand
from jaxconv.models import usual_task
from jaxconv.train.initial import save_weights
from jaxconv.weights.pretrained import file_of, find_weights, preprocessing_of
from jaxconv.weights.published import named
from jaxconv.weights.reader import open_weights
from jaxconv.weights.torchvision import load_torchvision
from jaxconv.weights.wrappers import unwrap


def convert(file: str, model: str, out: str, weights_key: str = "") -> dict[str, Any]:
    """Convert a file of torchvision's weights into a folder for `config.model.init_from`.

    Args:
      file: as `reader.open_weights` reads it, or published weights by name, see pretrained.py.
      model: the network's name.
      out: a folder that does not exist, or is empty.
      weights_key: of several dictionaries in the file, the one to take, such as `model_ema`.

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
    check_new(out)
    path, wants = expand(file, "FILE"), None
    if not path.exists() and (file.startswith("hf:") or named(file, model)):
        weights = find_weights(file, (model,), "FILE")
        path, wants = file_of(weights).path, preprocessing_of(weights)
    with open_weights(path) as state:
        arrays, where = unwrap(state, weights_key)
        variables = load_torchvision(model, arrays)
    source = f"{path.name}, CRC-32 {_crc32(path):08x}" + (f", its {where}" if where else "")
    return save_weights(out, model, variables, source, dataclasses.asdict(wants) if wants else None)


def _crc32(path: Path) -> int:
    with path.open("rb") as file:
        blocks = iter(functools.partial(file.read, 2**20), b"")
        return functools.reduce(lambda crc, block: zlib.crc32(block, crc), blocks, 0)


__getattr__ = moved.names_of(__name__)
