"""TensorFlow Datasets sets, read without TensorFlow: `tfds:NAME` or `tfds:NAME/CONFIG:VERSION`.

Splits are in TFDS's own syntax. The set must be prepared as array_record, which
`jaxconv prepare NAME` does (data/prepare.py).
"""

import contextlib
import json
import re
import shlex
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from jaxconv import moved
from jaxconv.cloud import is_address, place_of
from jaxconv.data.annotated import detection_targets, padded
from jaxconv.data.interface import SEVERAL, DamagedError, Target
from jaxconv.data.joined import BoxFiles
from jaxconv.data.masks import IGNORED
from jaxconv.data.pictures import upright_size
from jaxconv.data.tfds_targets import (
    MaskedSet,
    ObjectFeature,
    box_feature,
    masked_set,
    object_feature,
    read_stored_mask,
    stored_box,
    stored_objects,
)
from jaxconv.errors import UserError, short
from jaxconv.files import at_home

_AUDIO = "tensorflow_datasets.core.features.audio_feature.Audio"
_TENSOR = "tensorflow_datasets.core.features.tensor_feature.Tensor"


class PreparedSet:
    """Records of a prepared set: payloads are as stored, such as JPEG bytes, numbers, text bytes.

    Args:
      name: TFDS's name, with config and version if needed.
      split: in TFDS's syntax.
      settings: `config.data`; `tfds`, `boxes`, `max_boxes` and `annotations` are used.
      needs: the targets that the task needs; empty for the label.
      size: (height, width) of the masks in an example; None for those of the files.

    Attributes:
      class_names: of the label, or of the masks.
      targets: of an example, see tfds_targets.py.
      notes: see `Source`.
      kind: `image`, `sound` or `text`.
      channels: of the images; 0 if they vary.

    Raises:
      UserError: the set is not prepared, or not as array_record, or it does not have the split,
        input or label.
    """

    has_labels = False

    def __init__(
        self,
        name: str,
        split: str,
        settings: Any,
        needs: Sequence[str] = (),
        size: tuple[int, int] | None = None,
    ):
        import tensorflow_datasets as tfds

        builder, self._view = _open_builder(name, settings.tfds.data_dir)
        info, self.notes = builder.info, ()
        self._mask: MaskedSet | None = None
        self._boxes: BoxFiles | None = None
        self._box, self._most = "", settings.max_boxes
        self._objects: ObjectFeature | None = None
        self._several = False
        self._labelled: np.ndarray | None = None
        if "segmentation" in needs:
            self._mask = masked_set(info.name, info.features)
            self._input, self._label = settings.tfds.input or self._mask.image, ""
            self.class_names = self._mask.class_names
        elif "classes" in needs:
            self._objects = object_feature(name, info.features)
            self._input, self._label = settings.tfds.input or "image", ""
            self.class_names = self._objects.class_names
            if self._input not in info.features:
                raise UserError(
                    f"tfds:{name}: has no feature {self._input!r}; it has "
                    f"{', '.join(info.features)}: set --config.data.tfds.input",
                    exit_code=1,
                )
        else:
            self._input, self._label = _input_and_label(info, settings.tfds)
            label = info.features[self._label]
            self._several = hasattr(label, "feature")
            label = label.feature if self._several else label
            self.class_names = tuple(label.names or map(str, range(label.num_classes)))
        self.targets: dict[str, Target] = {"label": Target()}
        if self._objects is not None:
            self.targets = detection_targets(settings.max_boxes)
        elif settings.boxes:
            self._boxes = BoxFiles(settings.boxes, settings.max_boxes, settings.annotations)
            self.targets |= {"boxes": self._boxes.target}
            self.notes = self._boxes.notes
        elif "boxes" in needs:
            self._box = box_feature(name, info.features)
            self.targets |= {"boxes": Target((settings.max_boxes, 4), "float32", "boxes")}
        feature = info.features[self._input]
        self.kind = _kind_of(feature, self._input)
        self.channels = (feature.shape[-1] or 0) if self.kind == "image" else 0
        self.sample_rate = self._view.sample_rate if self._view else 0
        # Images stay encoded: they are decoded elsewhere, and unused ones, such as masks, never.
        pictures = {
            key: tfds.decode.SkipDecoding()
            for key, each in info.features.items()
            if isinstance(each, tfds.features.Image)
        }
        self._full_name, self._split = info.full_name, split
        names = ("file_name", "image/filename", "image_id")
        self._file_name = next((key for key in names if key in info.features), "")
        if self._boxes is not None and not self._file_name:
            raise UserError(
                f"tfds:{name}: has no file names, by which boxes would be joined; leave "
                "config.data.boxes empty",
                exit_code=1,
            )
        try:
            self._records = builder.as_data_source(split, decoders=pictures)
        except NotImplementedError as error:
            raise cannot_be_shuffled(name, builder) from error
        except ValueError as error:
            splits, why = ", ".join(info.splits), " ".join(str(error).split())
            raise UserError(
                f"tfds:{name}: cannot give the split {split!r} ({why}); it has {splits}",
                exit_code=1,
            ) from error
        if not _count(self._records):
            raise UserError(f"tfds:{name}: the split {split!r} is empty", exit_code=1)
        if self._several:
            self._find_labelled()
        if self._mask is not None:
            stored = info.features[self._mask.mask].shape[:2]
            if size:
                stored = size
            elif None in stored:
                stored = self[0][1]["segmentation"].shape
            self.targets = {"segmentation": Target(tuple(stored), "uint8", f"mask:{IGNORED}")}

    def _find_labelled(self) -> None:
        """Find the records with any of several labels, as ImageNet ReaL's; reads every record."""
        counts = np.array([len(self._records[i][self._label]) for i in range(len(self._records))])
        self._labelled = np.flatnonzero(counts)
        if not len(self._labelled):
            raise UserError(f"tfds:{self._full_name}: no example of {self._split!r} has a label", 1)
        if left := int((counts == 0).sum()):
            self.notes = (*self.notes, f"{left:,} examples without any label are left out")
        self.targets |= {SEVERAL: Target((int(counts.max()),), "int32")}

    def _stored(self, i: int) -> Any:
        """The record of an example."""
        return self._records[i if self._labelled is None else int(self._labelled[i])]

    def __len__(self) -> int:
        return len(self._records) if self._labelled is None else len(self._labelled)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        record = self._record(i)
        payload = record[self._input]
        if self._mask is not None:
            content = record[self._mask.mask]
            mask = read_stored_mask(content, payload, self._mask, self.name(i))
            return payload, {"segmentation": mask}
        if self._objects is not None:
            return payload, stored_objects(record, self._objects, payload, self._most)
        if self._several:
            found = np.asarray(record[self._label], np.int32)
            labels = padded(found, self.targets[SEVERAL].shape[0], -1)
            return payload, {"label": found[0], SEVERAL: labels}
        label = int(record[self._label])
        if "boxes" not in self.targets:
            return payload, label
        if self._boxes is None:
            boxes = stored_box(record[self._box], payload, self._most)
        else:
            file = record[self._file_name].decode(errors="replace")
            boxes = self._boxes.of(PurePath(file).stem, *upright_size(payload))
        return payload, {"label": np.int32(label), "boxes": boxes}

    def _record(self, i: int) -> dict[str, Any]:
        try:
            return self._stored(i)
        except (
            RuntimeError,
            OSError,
        ) as error:  # raised by array_record for a damaged or missing file
            raise DamagedError(f"cannot be read ({short(error)})") from error

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32; reads every record."""
        labels = (np.ravel(self._stored(i)[self._label])[0] for i in range(len(self)))
        return np.fromiter(labels, np.int32, len(self))

    def name(self, i: int) -> str:
        """The index in the split, and the file name if the set has one."""
        file = ""
        if self._file_name:
            with contextlib.suppress(RuntimeError, OSError):
                file = f" ({self._stored(i)[self._file_name].decode(errors='replace')})"
        return f"tfds:{self._full_name} {self._split}, example {i}{file}"

    def checksum(self) -> int:
        """CRC-32 of the set's name and version, its size, and its first and last example."""
        ends = [self._end(i) for i in (0, len(self) - 1)]
        value = zlib.crc32(repr((self._full_name, len(self), ends)).encode())
        return value if self._boxes is None else self._boxes.checksum(value)

    def _end(self, i: int) -> tuple[int, int]:
        """Label and CRC-32 of an example; two zeros for a damaged one, which has no checksum."""
        try:
            record = self._record(i)
        except DamagedError:
            return 0, 0
        label = int(np.ravel(record[self._label])[0]) if self._label else 0
        return label, zlib.crc32(_as_bytes(record[self._input]))


def _count(records: Any) -> int:
    """The number of records; 0 for a slice that ends before it begins, where `len` is negative."""
    try:
        return len(records)
    except ValueError:
        return 0


def _as_bytes(payload: Any) -> bytes:
    return payload if isinstance(payload, bytes) else np.ascontiguousarray(payload).tobytes()


class _WithoutAudio:
    """A view of a prepared set's folder in which sounds are plain tensors.

    TFDS's Audio feature cannot be loaded without TensorFlow.
    """

    def __init__(self, folder: Path, features: dict[str, Any]):
        temporary = tempfile.mkdtemp(prefix="jaxconv-")
        weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        self.path = Path(temporary) / folder.name
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
            feature |= {
                "pythonClassName": _TENSOR,
                "tensor": {name: audio[name] for name in ("shape", "dtype")} | {"encoding": "none"},
            }
        for inner in (
            feature["featuresDict"]["features"].values() if "featuresDict" in feature else ()
        ):
            self._replace(inner)


def cannot_be_shuffled(name: str, builder: Any) -> UserError:
    """The error for a set that was prepared in a format without random access."""
    folder = shlex.quote(str(builder.data_dir))
    return UserError(
        f"tfds:{name}: is prepared as {builder.info.file_format.value}, which has no random "
        "access; convert it: pip install "
        f"tensorflow-cpu apache-beam && tfds convert_format --dataset_version_dir={folder} "
        "--out_file_format=array_record",
        exit_code=1,
    )


def _open_builder(name: str, data_dir: str) -> tuple[Any, _WithoutAudio | None]:
    """The builder, loaded without the set's own code; and the folder it reads from, if a view."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.constants import DATA_DIR

    option = "config.data.tfds.data_dir"
    if is_address(data_dir):  # of which only this set is fetched
        at_home(f"{data_dir}/{name.partition(':')[0]}", option)
        place = place_of(data_dir, option)
    else:
        place = at_home(data_dir or DATA_DIR, option)
    folder = _find_folder(name, place)
    if folder is None:
        where = f" --data_dir={shlex.quote(data_dir)}" if data_dir else ""
        manual = " --manual_dir=DIR" if name.startswith(("imagenet2012", "cityscapes")) else ""
        raise UserError(
            f"tfds:{name}: is not prepared{f' in {data_dir}' if data_dir else ''}; prepare it: "
            f"pip install 'jaxconv[prepare]' && jaxconv prepare {shlex.quote(name)}{manual}{where}",
            exit_code=1,
        )
    try:
        features = json.loads((folder / "features.json").read_text())
        if _AUDIO in json.dumps(features):
            view = _WithoutAudio(folder, features)
            return tfds.builder_from_directory(view.path), view
        return tfds.builder_from_directory(folder), None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"tfds:{name}: {folder} is damaged ({why}); remove it and prepare it again", exit_code=1
        ) from error


def _find_folder(name: str, root: Path) -> Path | None:
    """ROOT/NAME[/CONFIG]/VERSION, by default the newest version; None if it does not exist.

    TFDS's own search imports the set's code, some of which needs TensorFlow.
    """
    path, _, version = name.partition(":")
    if not path:
        raise UserError("tfds: needs the name of a set, such as tfds:cifar10")
    versions = {
        file.parent
        for depth in ("*", "*/*")
        for file in (root / path).glob(f"{depth}/dataset_info.json")
    }
    versions = {
        folder
        for folder in versions
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name) and version in ("", folder.name)
    }
    configs = sorted({str(folder.parent.relative_to(root)) for folder in versions})
    if len(configs) > 1:
        raise UserError(
            f"tfds:{name}: several configs are prepared, {', '.join(configs)}: choose one",
            exit_code=1,
        )
    return max(versions, key=lambda folder: tuple(map(int, folder.name.split("."))), default=None)


def _input_and_label(info: Any, settings: Any) -> tuple[str, str]:
    keys = info.supervised_keys or ("", "")
    chosen = settings.input or keys[0], settings.label or keys[1]
    for what, key in zip(("input", "label"), chosen, strict=True):
        if key not in info.features:
            raise UserError(
                f"tfds:{info.full_name}: has no feature {key!r} to use as the {what}; it has "
                f"{', '.join(info.features)}: "
                f"set --config.data.tfds.{what}",
                exit_code=1,
            )
    if not hasattr(info.features[chosen[1]], "num_classes"):
        raise UserError(
            f"tfds:{info.full_name}: the feature {chosen[1]!r} is not a class label; set "
            "--config.data.tfds.label",
            exit_code=1,
        )
    return chosen


def _kind_of(feature: Any, name: str) -> str:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return "image"
    if isinstance(feature, tfds.features.Text):
        return "text"
    shape = getattr(feature, "shape", None)
    if type(feature) is tfds.features.Tensor and shape is not None and len(shape) == 1:
        return "sound"
    raise UserError(
        f"the feature {name!r} is {type(feature).__name__}; it must be an image, a text or a "
        "sound: set --config.data.tfds.input",
        exit_code=1,
    )


__getattr__ = moved.names_of(__name__)
