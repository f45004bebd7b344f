"""`jaxconv prepare NAME`: prepare a TensorFlow Datasets set as array_record.

This needs TensorFlow (the extra `prepare`). TFDS writes to a folder `incomplete.*` and renames it
when it has finished, so a set is either complete or absent.
"""

import contextlib
import importlib.util
import io
import logging
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxconv.cloud import is_address
from jaxconv.data.tfds_sets import cannot_be_shuffled
from jaxconv.disk import lock
from jaxconv.errors import UserError, missing, nearest
from jaxconv.files import at_home

IMAGENET_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
IMAGENET_CLASSES, IMAGENET_VALIDATION = 1_000, 50_000
_SAMPLE = 5

log = logging.getLogger(__name__)


def prepare(name: str, data_dir: str = "", manual_dir: str = "", partial: bool = False) -> Path:
    """Prepare a set as array_record.

    Args:
      name: TFDS's name, such as `cifar10` or `imagenet2012`.
      data_dir: where to put it; empty for TFDS's default folder.
      manual_dir: folder of manually downloaded files, such as ImageNet's two tars.
      partial: accept tars of ImageNet that lack classes or images.

    Returns:
      The folder of the prepared set.

    Raises:
      UserError: TensorFlow is not installed, the set does not exist, its files are missing or
        damaged, or TFDS cannot prepare it.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise missing("preparing a set (not reading it)", "tensorflow")
    if name.partition(":")[0].partition("/")[0] == "imagenet2012":
        check_imagenet(manual_dir, partial)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets as tfds

    for option, given in (("data_dir", data_dir), ("manual_dir", manual_dir)):
        if is_address(given):
            raise UserError(
                f"--{option}={given}: a set is prepared on this machine; give a folder, and then "
                "copy it to the bucket"
            )
    places: dict[str, Any] = {"data_dir": str(at_home(data_dir, "--data_dir"))} if data_dir else {}
    manual: dict[str, Any] = (
        {"manual_dir": str(at_home(manual_dir, "--manual_dir"))} if manual_dir else {}
    )
    try:
        builder = tfds.builder(name, file_format="array_record", **places)
    except tfds.core.DatasetNotFoundError as error:
        known = nearest(name, tfds.list_builders(with_community_datasets=False))
        raise UserError(
            f"tfds:{name}: not found in TensorFlow Datasets{known}", exit_code=1
        ) from error
    except (ValueError, ImportError) as error:
        raise UserError(f"tfds:{name}: {' '.join(str(error).split())}", exit_code=1) from error
    folder = Path(builder.data_dir)
    with _only_one(folder.parent):
        if folder.exists():
            form = builder.info.file_format
            if form is None or form.value not in ("array_record", "parquet"):
                raise cannot_be_shuffled(name, builder)
            log.info("%s is already prepared in %s", name, folder)
            return folder
        _clean_up(folder.parent)
        try:
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**manual))
        except (
            Exception
        ) as error:  # downloads, archives and the code of each set may raise anything
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"tfds:{name}: cannot be prepared: {why}", exit_code=1) from error
    splits = ", ".join(
        f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items()
    )
    log.info("%s is prepared in %s: %s", name, folder, splits)
    return folder


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold a lock, to tell the leftovers of an interrupted preparation from a running one."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".prepare.lock", "w") as file:
        try:
            lock(file)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another process is preparing this set; wait until it finishes",
                exit_code=1,
            ) from error
        yield


def _clean_up(folder: Path) -> None:
    for rest in folder.glob("incomplete.*"):
        log.warning(
            "a preparation was interrupted: removing its leftovers, %s, and starting again", rest
        )
        shutil.rmtree(rest)


def check_imagenet(manual_dir: str, partial: bool = False) -> None:
    """Check ImageNet's two tars: names and counts of all members, a sample of the images.

    Raises:
      UserError: a tar is missing or damaged, has unexpected members, or is incomplete without
        `partial`.
    """
    if not manual_dir:
        raise UserError(
            f"imagenet2012 is prepared from {' and '.join(IMAGENET_TARS)}: set their folder with "
            "--manual_dir=DIR"
        )
    folder = at_home(manual_dir, "--manual_dir")
    for name in IMAGENET_TARS:
        if not (folder / name).is_file():
            there = (
                ", ".join(sorted(path.name for path in folder.glob("*"))[:5])
                if folder.is_dir()
                else "the folder does not exist"
            )
            raise UserError(
                f"--manual_dir={manual_dir}: {name} not found; found: {there or 'nothing'}",
                exit_code=1,
            )
    for name, check in zip(IMAGENET_TARS, (_check_train, _check_validation), strict=True):
        try:
            with tarfile.open(folder / name, "r:") as tar:
                members = tar.getmembers()
                if (
                    members
                    and members[-1].offset_data + members[-1].size > (folder / name).stat().st_size
                ):
                    raise tarfile.ReadError("unexpected end of data")
                check(folder / name, tar, members, partial)
        except tarfile.TarError as error:
            raise UserError(
                f"{folder / name}: is damaged ({error}); download it again", exit_code=1
            ) from error


def _check_train(
    path: Path, tar: tarfile.TarFile, members: list[tarfile.TarInfo], partial: bool
) -> None:
    import tensorflow_datasets as tfds

    labels = Path(tfds.core.tfds_path("datasets/imagenet2012/labels.txt"))
    known, found = (
        set(labels.read_text().split()),
        {member.name.removesuffix(".tar") for member in members},
    )
    strange = sorted(
        member.name
        for member in members
        if not member.name.endswith(".tar") or member.name[:-4] not in known
    )
    if strange:
        raise UserError(
            f"{path}: holds {strange[0]!r}, which is not a class of ImageNet 2012; it must hold "
            "n01440764.tar ...",
            exit_code=1,
        )
    _check_count(path, len(found), IMAGENET_CLASSES, "classes", partial)
    for member in _spread(members):
        with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
            images = inner.getmembers()
            wrong = [
                image.name
                for image in images
                if not re.fullmatch(rf"{member.name[:-4]}_\d+\.JPEG", image.name)
            ]
            if wrong or not images:
                raise UserError(
                    f"{path}, {member.name}: holds {wrong[0] if wrong else 'nothing'!r}; it must "
                    "hold images of the class",
                    exit_code=1,
                )
            _check_image(f"{path}, {member.name}, {images[0].name}", inner.extractfile(images[0]))
    log.info(
        "%s: %s classes, of which %d were opened",
        path,
        f"{len(found):,}",
        len(_spread(members)),
    )


def _check_validation(
    path: Path, tar: tarfile.TarFile, members: list[tarfile.TarInfo], partial: bool
) -> None:
    names = sorted(member.name for member in members)
    # TFDS assigns the labels to the sorted names in order: a gap would shift all later labels.
    for number, name in enumerate(names, 1):
        if name != f"ILSVRC2012_val_{number:08}.JPEG":
            raise UserError(
                f"{path}: holds {name!r} in place of ILSVRC2012_val_{number:08}.JPEG; download it "
                "again",
                exit_code=1,
            )
    _check_count(path, len(names), IMAGENET_VALIDATION, "images", partial)
    for member in _spread(members):
        _check_image(f"{path}, {member.name}", tar.extractfile(member))
    log.info(
        "%s: %s images, of which %d were decoded", path, f"{len(names):,}", len(_spread(members))
    )


def _check_count(path: Path, found: int, wanted: int, what: str, partial: bool) -> None:
    if not found or (found != wanted and not partial):
        raise UserError(
            f"{path}: holds {found:,} {what}, but ImageNet has {wanted:,}; download it again, or "
            "accept it with --partial",
            exit_code=1,
        )


def _check_image(name: str, file: Any) -> None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file.read())) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{name}: cannot be read as an image ({error}); download the tar again", exit_code=1
        ) from error


def _spread(members: list[tarfile.TarInfo]) -> list[tarfile.TarInfo]:
    """A few members, evenly spaced, including the first and the last."""
    count = min(_SAMPLE, len(members))
    return [members[i * (len(members) - 1) // max(1, count - 1)] for i in range(count)]
