"""Sets of TensorFlow Datasets, read without TensorFlow: `tfds:NAME` or `tfds:NAME/CONFIG:VERSION`, splits in TFDS's own syntax.

The set must be prepared as array_record, which `jaxconv prepare NAME` does (data/prepare.py).
"""

import json
import logging
import shlex
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.errors import UserError

_AUDIO = "tensorflow_datasets.core.features.audio_feature.Audio"
_TENSOR = "tensorflow_datasets.core.features.tensor_feature.Tensor"

log = logging.getLogger(__name__)


class Prepared:
    """Records of a prepared set: the payload is what the file holds, such as the bytes of a JPEG, numbers, or bytes of a text.

    Args:
      name: TFDS's name, with config and version if need be.
      split: in TFDS's syntax.
      settings: `config.data.tfds`.

    Attributes:
      class_names: of the label.
      kind: `image`, `sound` or `text`.
      channels: of the images; 0 where they differ.

    Raises:
      UserError: it is not prepared, not as array_record, or has no such split, input or label.
    """

    def __init__(self, name: str, split: str, settings: Any):
        import tensorflow_datasets as tfds

        builder, self._view = _open_builder(name, settings.data_dir)
        info = builder.info
        self._input, self._label = _input_and_label(info, settings)
        feature, label = info.features[self._input], info.features[self._label]
        self.class_names = tuple(label.names or map(str, range(label.num_classes)))
        self.kind = _kind_of(feature, self._input)
        self.channels = (feature.shape[-1] or 0) if self.kind == "image" else 0
        self.sample_rate = self._view.sample_rate if self._view else 0
        decoders = {self._input: tfds.decode.SkipDecoding()} if self.kind == "image" else None
        wanted = (self._input, self._label, *(["file_name"] if "file_name" in info.features else []))
        self._wanted, self._full_name, self._split = wanted, info.full_name, split
        try:
            partial = tfds.decode.PartialDecoding(dict.fromkeys(wanted, True), decoders=decoders)
            self._records = builder.as_data_source(split, decoders=partial)
        except NotImplementedError as error:
            folder = shlex.quote(str(builder.data_dir))
            raise UserError(
                f"tfds:{name}: is prepared as {info.file_format.value}, which cannot be read in any order; convert it: pip install "
                f"tensorflow-cpu apache-beam && tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record",
                exit_code=1,
            ) from error
        except ValueError as error:
            splits = ", ".join(info.splits)
            raise UserError(f"tfds:{name}: cannot give the split {split!r} ({error}); it has {splits}", exit_code=1) from error
        if not len(self._records):
            raise UserError(f"tfds:{name}: the split {split!r} is empty", exit_code=1)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        record = self._records[i]
        return record[self._input], int(record[self._label])

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32; reads every record."""
        return np.array([int(self._records[i][self._label]) for i in range(len(self))], np.int32)

    def name(self, i: int) -> str:
        """The file's name where the set has one, and the place in the split."""
        file = ""
        if "file_name" in self._wanted:
            file = f" ({self._records[i]['file_name'].decode(errors='replace')})"
        return f"tfds:{self._full_name} {self._split}, example {i}{file}"

    def checksum(self) -> int:
        """CRC-32 of the set's name and version, the number of examples, and the first and the last of them."""
        ends = [(self[i][1], zlib.crc32(_as_bytes(self[i][0]))) for i in (0, len(self) - 1)]
        return zlib.crc32(repr((self._full_name, len(self), ends)).encode())


def _as_bytes(payload: Any) -> bytes:
    return payload if isinstance(payload, bytes) else np.ascontiguousarray(payload).tobytes()


class _WithoutAudio:
    """A folder that shows a prepared set with its sounds as plain numbers: TFDS's own feature for sound needs TensorFlow to be named."""

    def __init__(self, folder: Path, features: dict[str, Any]):
        self._temporary = tempfile.TemporaryDirectory(prefix="jaxconv-")
        self.path = Path(self._temporary.name) / folder.name
        self.path.mkdir()
        for file in folder.iterdir():
            if file.name != "features.json":
                (self.path / file.name).symlink_to(file.absolute())
        self.sample_rate = 0
        self._replace(features)
        (self.path / "features.json").write_text(json.dumps(features))

    def _replace(self, feature: dict[str, Any]) -> None:
        if feature["pythonClassName"] == _AUDIO:
            audio = feature.pop("audio")
            self.sample_rate = int(audio["sampleRate"]) if "sampleRate" in audio else 0
            feature |= {"pythonClassName": _TENSOR, "tensor": {name: audio[name] for name in ("shape", "dtype")} | {"encoding": "none"}}
        for inner in feature["featuresDict"]["features"].values() if "featuresDict" in feature else ():
            self._replace(inner)


def _open_builder(name: str, data_dir: str) -> tuple[Any, _WithoutAudio | None]:
    """The builder, without the code that made the set, and the folder it reads from where that is not the set's own."""
    from tensorflow_datasets.core import read_only_builder, registered

    places = {"data_dir": str(Path(data_dir).expanduser())} if data_dir else {}
    try:
        folder = read_only_builder._find_builder_dir(name, **places)
    except (ValueError, registered.DatasetNotFoundError) as error:
        raise UserError(f"tfds:{name}: {str(error).splitlines()[0]}", exit_code=1) from error
    if folder is None:
        where = f" --data_dir={shlex.quote(data_dir)}" if data_dir else ""
        manual = " --manual_dir=DIR" if name.startswith("imagenet2012") else ""
        raise UserError(
            f"tfds:{name}: is not prepared{f' in {data_dir}' if data_dir else ''}; prepare it: "
            f"pip install 'jaxconv[prepare]' && jaxconv prepare {shlex.quote(name)}{manual}{where}",
            exit_code=1,
        )
    try:
        features = json.loads((Path(folder) / "features.json").read_text())
        if _AUDIO in json.dumps(features):
            view = _WithoutAudio(Path(folder), features)
            return read_only_builder.builder_from_directory(view.path), view
        return read_only_builder.builder_from_directory(folder), None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"tfds:{name}: {folder} is damaged ({' '.join(str(error).split())}); remove it and prepare it again", exit_code=1
        ) from error


def _input_and_label(info: Any, settings: Any) -> tuple[str, str]:
    keys = info.supervised_keys or ("", "")
    chosen = settings.input or keys[0], settings.label or keys[1]
    for what, key in zip(("input", "label"), chosen, strict=True):
        if key not in info.features:
            raise UserError(
                f"tfds:{info.full_name}: has no feature {key!r} to be the {what}; it has {', '.join(info.features)}: "
                f"set --config.data.tfds.{what}",
                exit_code=1,
            )
    if not hasattr(info.features[chosen[1]], "num_classes"):
        raise UserError(f"tfds:{info.full_name}: the feature {chosen[1]!r} is no class; set --config.data.tfds.label", exit_code=1)
    return chosen


def _kind_of(feature: Any, name: str) -> str:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return "image"
    if isinstance(feature, tfds.features.Text):
        return "text"
    if type(feature) is tfds.features.Tensor and len(feature.shape) == 1:
        return "sound"
    raise UserError(
        f"the feature {name!r} is {type(feature).__name__}; it must be an image, a text or a sound: set --config.data.tfds.input",
        exit_code=1,
    )
