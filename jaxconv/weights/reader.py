"""Files of weights, told apart by their first bytes, whatever they are called: safetensors, what
`torch.save` wrote (.pth, .pt, .th, .pth.tar, .ckpt, .bin), NumPy's .npz, Keras' .h5 and .keras, and
the initializers of ONNX.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from jaxconv.errors import UserError
from jaxconv.weights.keras_file import HDF5, is_keras_archive, read_keras
from jaxconv.weights.onnx_file import is_onnx, read_onnx
from jaxconv.weights.pickled import open_archive, open_pickles, reraise_damage
from jaxconv.weights.torchvision import as_float32
from jaxconv.weights.wrappers import unwrap

_TAR = "a tar archive; unpack it, or, where it is PyTorch's from before 0.2, save it anew there"
# The first bytes of what people take for weights -> what it is, and what to do.
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file; run `git lfs pull` there",
    b"<": "a web page, not the file; download it again",
    b"{": "JSON; where it lists the parts of a model, save that in one file",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
}


class _InSafetensors:
    """An array of a safetensors file; `np.asarray` reads it, while the file is open."""

    def __init__(self, file: Path, opened: Any, name: str):
        self._file, self._opened, self._name = file, opened, name
        self.shape = opened.get_slice(name).get_shape()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with reraise_damage(self._file, "safetensors"):
            return np.asarray(self._opened.get_tensor(self._name), dtype)


@contextlib.contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """What a file of weights holds: dictionaries, maybe of dictionaries, of what `np.asarray` makes
    an array of while the context lasts. Nothing that the file names is run.

    Raises:
      UserError: there is no such file, it is of another kind, or damaged; or the body of the
        context raised a ValueError about what it holds.
    """
    if not file.is_file():
        raise UserError(f"{file}: the file does not exist", exit_code=1)
    with _reraise_values(file), contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open("rb"))
        first = stream.read(512)
        stream.seek(0)
        if first.startswith(b"PK\x03\x04"):
            with reraise_damage(file):
                archive = stack.enter_context(zipfile.ZipFile(stream))
            if all(name.endswith(".npy") for name in archive.namelist()):
                yield _of_npz(file, archive)
            elif is_keras_archive(archive):
                yield read_keras(file, archive)
            else:
                yield open_archive(file, archive)
        elif first.startswith(b"\x80"):
            yield open_pickles(file, stream)
        elif first[8:9] == b"{" and int.from_bytes(first[:8], "little") < 2**40:
            yield _of_safetensors(file, stack)
        elif first.startswith(HDF5):
            yield read_keras(file)
        elif is_onnx(first):
            yield read_onnx(stream.read())
        else:
            raise UserError(f"{file}: is {_kind(first)}", exit_code=1)


@contextlib.contextmanager
def _reraise_values(file: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file}: {error}", exit_code=1) from error


def _kind(first: bytes) -> str:
    if not first:
        return "empty"
    if first[257:262] == b"ustar":
        return _TAR
    known = (what for start, what in _OTHERS.items() if first.lstrip().startswith(start))
    return next(
        known, "no file of weights: neither safetensors, nor of torch.save, nor .npz, Keras or ONNX"
    )


def _of_safetensors(file: Path, stack: contextlib.ExitStack) -> dict[str, _InSafetensors]:
    from safetensors import safe_open

    with reraise_damage(file, "safetensors"):
        opened = stack.enter_context(safe_open(file, "numpy"))
        return {name: _InSafetensors(file, opened, name) for name in opened.keys()}  # noqa: SIM118


def _of_npz(file: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    with reraise_damage(file, "arrays of NumPy"):
        # An archive that is open has its file.
        return dict(np.load(cast(IO[bytes], archive.fp), allow_pickle=False))


def read_state_dict(file: Path, weights_key: str = "") -> dict[str, np.ndarray]:
    """The network's arrays by name, float32, from a file of weights; see `unwrap`.

    Raises:
      UserError: the file cannot be read, or its weights cannot be used.
    """
    with open_weights(file) as state:
        return as_float32(unwrap(state, weights_key)[0])
