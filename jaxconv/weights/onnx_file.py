"""The initializers of an ONNX file, read without the onnx package: names and arrays, nothing else.

An ONNX file is one protobuf message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). A
message is a row of fields: a key, number * 8 + type, and a value: type 0 is a varint, 1 and 5 are 8
and 4 bytes, 2 is a length and so many bytes. Here are the fields that are read:

ModelProto    graph 7
GraphProto    initializer 5
TensorProto   dims 1, data_type 2, float_data 4, int32_data 5, int64_data 7, name 8, raw_data 9,
              double_data 10, data_location 14
"""

import math
import struct
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxconv.errors import in_words, short

_GRAPH, _INITIALIZER = 7, 5
_DIMS, _TYPE, _NAME, _RAW, _LOCATION = 1, 2, 8, 9, 14
# Number of a type in TensorProto -> numpy's, and the field of its values if they are not raw.
_TYPES = {
    1: ("float32", 4),
    2: ("uint8", 5),
    3: ("int8", 5),
    4: ("uint16", 5),
    5: ("int16", 5),
    6: ("int32", 5),
    7: ("int64", 7),
    9: ("bool", 5),
    10: ("float16", 5),
    11: ("float64", 10),
    16: ("bfloat16", 5),
}
_FIXED = {1: 8, 5: 4}


def is_onnx(first: bytes) -> bool:
    """Whether a file begins as ONNX's do: with the version of its form, and then a field."""
    return len(first) > 3 and first[0] == 0x08 and 0 < first[1] < 0x20 and first[2] in _AFTER


# Keys of the other fields of ModelProto: texts, a number, messages.
_AFTER = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72)


def read_onnx(content: bytes) -> dict[str, np.ndarray]:
    """The initializers by name, but for those of int64, which are shapes.

    Raises:
      ValueError: the file is damaged, or keeps its arrays in other files.
    """
    arrays: dict[str, np.ndarray] = {}
    for number, graph in _fields(memoryview(content)):
        if number == _GRAPH:
            for inner, tensor in _fields(_bytes(graph)):
                if inner == _INITIALIZER:
                    name, array = _tensor(_bytes(tensor))
                    if array.dtype != np.int64:  # shapes and indices, no weights
                        arrays[name] = array
    if not arrays:
        raise ValueError("holds no arrays: no initializer in an ONNX graph")
    return arrays


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        value |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            return value, place
    raise ValueError(f"is damaged: a number of ONNX ends at byte {place:,}")


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"is damaged: ONNX has no field of type {kind} (byte {place:,})")
        if place + size > len(data):
            raise ValueError(f"is damaged or cut off: {size:,} bytes of ONNX at byte {place:,}")
        yield number, data[place : place + size]
        place += size


def _bytes(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("is damaged: a number of ONNX where a message should be")
    return value


def _numbers(value: Any) -> list[int]:
    """A field of varints, which are packed into bytes or come one by one."""
    if isinstance(value, int):
        return [value]
    found, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        found.append(number)
    return found


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    dims: list[int] = []
    kind, name, raw, location = 0, "", None, 0
    values: dict[int, list[Any]] = {}
    for number, value in _fields(data):
        if number == _DIMS:
            dims += _numbers(value)
        elif number == _TYPE and isinstance(value, int):
            kind = value
        elif number == _NAME:
            name = bytes(_bytes(value)).decode("utf-8", "replace")
        elif number == _RAW:
            raw = _bytes(value)
        elif number == _LOCATION and isinstance(value, int):
            location = value
        else:
            values.setdefault(number, []).append(value)
    if location:
        raise ValueError(
            f"keeps {short(name)} in another file; save it with the arrays in one file "
            "(save_as_external_data=False)"
        )
    if kind not in _TYPES:
        raise ValueError(f"{short(name)}: ONNX's type {kind} is not a number that weights have")
    dtype, field = _TYPES[kind]
    count, most = math.prod(dims), len(data)
    if count > most:  # each takes a byte at least
        raise ValueError(f"{short(name)}: is damaged: {dims} numbers in {most:,} bytes")
    if raw is not None:
        found = np.frombuffer(raw, jnp.dtype(dtype).newbyteorder("<"))
        found = found.astype(jnp.dtype(dtype))
    else:
        found = _typed(values.get(field, []), dtype, field)
    if found.size != count:
        raise ValueError(f"{short(name)}: is damaged: {found.size:,} numbers for {dims}")
    try:
        return name, found.reshape(dims)
    except (ValueError, OverflowError) as error:  # of one dimension that is beyond all memory
        raise ValueError(f"{short(name)}: is damaged ({in_words(error)})") from error


def _typed(values: list[Any], dtype: str, field: int) -> np.ndarray:
    """The values of a field of its own: 4 and 10 are floats, the others varints."""
    if field in (4, 10):
        form = "<f4" if field == 4 else "<f8"
        if not all(isinstance(value, memoryview) for value in values):
            raise ValueError("is damaged: a varint of ONNX where a float should be")
        return np.concatenate([np.zeros(0, form), *(np.frombuffer(v, form) for v in values)])
    numbers = [number for value in values for number in _numbers(value)]
    if dtype in ("float16", "bfloat16"):  # their bits
        bits = np.array([number & 0xFFFF for number in numbers], np.uint16)
        return bits.view(jnp.dtype(dtype))
    whole = b"".join(struct.pack("<Q", number & (2**64 - 1)) for number in numbers)
    return np.frombuffer(whole, "<i8").astype(dtype)
