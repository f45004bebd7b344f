"""What `torch.save` writes, read without torch and without running any code that the file names.

A pickle tells its reader which functions and classes to call, so that a file from elsewhere could
do anything. Here the few that build tensors stand in a table (`_BUILDERS`), and every other name,
whether argparse.Namespace or os.system, becomes an `Unread`, which holds what it was given and
does nothing. So a checkpoint that also holds the settings of its training is read like any other.

Since 1.6 PyTorch writes a zip archive: NAME/data.pkl with one file NAME/data/KEY for each storage.
Before, it wrote four pickles one after the other, and then the storages.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import jax.numpy as jnp
import numpy as np

from jaxconv.errors import UserError, in_words

# Of the bytes of a number.
Order = Literal["<", ">"]
# The first pickle of a file from before the archives.
_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Where numbers lie: `read(key)` gives their bytes, and the first of ours is number `start`."""

    dtype: np.dtype
    key: str
    start: int
    read: Callable[[str], bytes]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file; `np.asarray` reads it, while the file is open.

    Attributes:
      shape, dtype: as numpy has them.
      strides: distance of neighbours along each axis, in numbers, not bytes.
      offset: of the first number in the storage.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]
    offset: int
    storage: _Storage

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        content = self.storage.read(self.storage.key)
        try:
            return np.array(self._view(content), dtype or self.dtype.newbyteorder("="))
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            raise ValueError(
                f"a tensor of shape {self.shape} is damaged ({in_words(error)})"
            ) from error

    def _view(self, content: bytes) -> np.ndarray:
        numbers = np.frombuffer(content, self.dtype, len(content) // self.dtype.itemsize)
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        last = self.offset + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        if min((self.offset, *self.shape, *self.strides)) < 0 or last >= len(numbers):
            raise ValueError(f"it ends at number {last + 1:,} of {len(numbers):,}")
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides)


class Unread(dict):
    """Stands for an object of any class but tensors, and for what a function would have returned.

    Attributes:
      named: the class or function, such as `argparse.Namespace`.
      state: what the object would have been restored from.
    """

    named = ""
    state: Any = None

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: Any, **__: Any) -> "Unread":
        return Unread()

    def append(self, *_: Any) -> None:
        """An element of a list: left out."""

    extend = add = append
    __eq__ = object.__eq__

    def __hash__(self) -> int:
        return object.__hash__(self)

    def is_network(self) -> bool:
        """Whether it is an nn.Module, pickled as a whole."""
        return isinstance(self.state, dict) and {"_parameters", "_modules"} <= self.state.keys()


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        return Unread()
    offset += storage.start
    return Tensor(tuple(size), storage.dtype, tuple(stride), offset, storage)


def _tensor_of_bytes(storage: Any, offset: int, size: Any, stride: Any, *more: Any) -> Any:
    """Of a dtype that has no storage of its own: the storage is bytes, the offset is in numbers."""
    _, _, dtype, *_ = more
    try:
        name = dtype.named.removeprefix("torch.")
        known = jnp.dtype(name).newbyteorder(storage.dtype.byteorder)
    except (TypeError, AttributeError):
        return Unread()
    return _tensor(dataclasses.replace(storage, dtype=known), offset, size, stride)


def _first(data: Any, *_: Any) -> Any:
    return data


def _call(build: Callable, _: Any, arguments: Any, *__: Any) -> Any:
    return build(*arguments)


_BUILDERS: dict[str, Callable] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _call,
}


class _Unpickler(pickle.Unpickler):
    """Finds nothing but what stands in `_BUILDERS`.

    Args:
      file: the pickle.
      read: the bytes of a storage by its key.
      order: "<" or ">", of the bytes of a number.
    """

    def __init__(
        self, file: BinaryIO, read: Callable[[str], bytes], order: Literal["<", ">"] = "<"
    ):
        super().__init__(file, encoding="latin1")  # of Python 2, whose strings were bytes
        self._read = read
        self._order: Order = order
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _BUILDERS:
            return _BUILDERS[full]
        return type(name, (Unread,), {"named": full})

    def persistent_load(self, saved: Any) -> Any:
        kind, what, *rest = saved
        if kind != "storage":
            return what  # a class, with the file and the text of its code
        key, _, _, *view = rest
        name = _DTYPES.get(what.named.rpartition(".")[2])
        if name is None:
            return Unread()
        dtype = jnp.dtype(name).newbyteorder(self._order)
        self.dtypes[key] = dtype
        start = view[0][1] if view and view[0] else 0
        return _Storage(dtype, key, start, self._read)


@contextlib.contextmanager
def reraise_damage(file: Path, what: str = "PyTorch weights") -> Iterator[None]:
    """Make whatever reading a file raises a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files can raise anything
        raise UserError(
            f"{file}: cannot be read as {what} ({in_words(error)})", exit_code=1
        ) from error


def open_archive(file: Path, archive: zipfile.ZipFile) -> Any:
    """What a zip archive of `torch.save` holds, tensors as `Tensor`.

    Raises:
      UserError: it is an archive of something else.
    """
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(
            f"{file}: is a zip archive, but not one of torch.save or of np.savez; it holds "
            f"{', '.join(names[:3]) or 'nothing'}",
            exit_code=1,
        )
    root = pickles[0].removesuffix("data.pkl")
    if any(name.startswith(f"{root}code/") for name in names):
        raise UserError(
            f"{file}: is a program of TorchScript, not weights; where torch is, save those: "
            f"torch.save(torch.jit.load({file.name!r}).state_dict(), 'NEW.pth')",
            exit_code=1,
        )
    order = f"{root}byteorder"

    @functools.lru_cache(maxsize=1)
    def read(key: str) -> bytes:
        with reraise_damage(file):
            return archive.read(f"{root}data/{key}")

    with reraise_damage(file):
        big = order in names and archive.read(order) == b"big"
        return _Unpickler(io.BytesIO(archive.read(pickles[0])), read, ">" if big else "<").load()


def open_pickles(file: Path, stream: BinaryIO) -> Any:
    """What a file of `torch.save` from before the archives holds, tensors as `Tensor`.

    Raises:
      UserError: it is damaged, or a pickle of something else.
    """
    places: dict[str, tuple[int, int]] = {}

    @functools.lru_cache(maxsize=1)
    def read(key: str) -> bytes:
        with reraise_damage(file):
            place, size = places[key]
            stream.seek(place)
            content = stream.read(size)
            if len(content) < size:
                raise EOFError(f"it ends after {place + len(content):,} bytes")
            return content

    with reraise_damage(file):
        if _Unpickler(stream, read).load() != _MAGIC:
            raise ValueError("it is a pickle, but not one of torch.save")
        protocol, system = _Unpickler(stream, read).load(), _Unpickler(stream, read).load()
        order: Order = "<" if protocol is None or system.get("little_endian", True) else ">"
        body = _Unpickler(stream, read, order)
        loaded = body.load()
        keys = _Unpickler(stream, read).load()
        place = stream.tell()
        for key in keys:
            stream.seek(place)
            count = int.from_bytes(stream.read(8), "little" if order == "<" else "big")
            size = count * body.dtypes[key].itemsize
            places[key] = (place + 8, size)
            place += 8 + size
    return loaded
