"""Opening a source of examples by its name in the config.

    xo             the lecture's X's and O's, drawn on the fly (data/xo.py)
    xo_scenes, xo_boxes        scenes of them with masks and boxes (data/scenes.py)
    tones, sentences, solids, xo_clips   toys in 1-D and 3-D, and clips (data/toys.py)
    folder:PATH    images, sounds, volumes or clips in folders named after their classes
                   (data/folder.py)
    masks:PATH     images with masks of class indices (data/masks.py)
    coco:PATH      COCO's annotations: masks, boxes, classes (data/coco.py)
    voc:PATH       Pascal VOC's layout: masks, boxes, classes (data/voc.py)
    csv:PATH       a table of boxes and classes (data/tables.py)
    nifti:PATH     volumes with masks of class indices (data/nifti.py)
    arrays:PATH    a .npz file, or a folder with the idx files of MNIST's family (data/arrays.py)
    text:PATH      PATH/<split>.tsv, a class, a tab and a text per line, and like files
                   (data/lines.py)
    tfds:NAME      a TensorFlow Datasets set (data/tfds_sets.py)
    FILE.py:NAME   a custom function, (config.data, split) -> Source (own.py)
    given          what was handed to `train(config, workdir, sources=...)`; nothing can open it

Paths of folder: and text: may have fields in braces (data/named_files.py), and a split may be cut
into folds (data/folds.py).

A source that has several kinds of targets gives those that the task needs. With
`data.boxes=DIR`, folder: and tfds:imagenet2012 have ILSVRC's boxes (data/joined.py).

A source is read into memory if it is no larger than `data.resident_limit` and is not cropped at
random while reading.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from ml_collections import ConfigDict

from jaxconv.cloud import is_address
from jaxconv.config import default_config
from jaxconv.data import (
    arrays,
    canvas,
    coco,
    decode,
    folder,
    geometry,
    joined,
    lines,
    masks,
    nifti,
    scenes,
    signals,
    tables,
    toys,
    voc,
    xo,
)
from jaxconv.data.folds import cut_source, parse_split
from jaxconv.data.interface import (
    LABEL,
    RESERVED,
    SEVERAL,
    Arrays,
    DamagedError,
    Element,
    Source,
    describe,
    generator,
    moves_of,
    read_targets,
    size_in_words,
)
from jaxconv.data.pictures import is_grey
from jaxconv.data.stored import Placed, Records, StoredSource, load
from jaxconv.errors import UserError, in_words, nearest, short
from jaxconv.files import at_home
from jaxconv.own import check_takes, is_own, own, wrong
from jaxconv.values import AnyConfig

# Settings of `config.data` that say how an image stands on a canvas.
ON_CANVAS = ("canvas", "sides", "mean")
# The source of a run whose sources were handed to `train`.
GIVEN = "given"
TOYS = ("tones", "sentences", "solids", "xo_clips")
SCENES = ("xo_scenes", "xo_boxes")
PATTERNS = (
    *("xo", *SCENES, *TOYS),
    *("folder:PATH", "masks:PATH", "coco:PATH", "voc:PATH", "csv:PATH", "nifti:PATH"),
    *("arrays:PATH", "text:PATH", "tfds:NAME"),
)


def open_source(
    config: Any,
    split: str,
    like: dict[str, Any] | None = None,
    augment: Any = None,
    before: dict[str, Any] | None = None,
    needs: Sequence[str] = (),
) -> Source:
    """Open one split of the source that `config` (the `data` part of a config) names.

    Args:
      config: `config.data`.
      split: the split's name.
      like: description of the source that this split must match, so that a test split is read as
        its training split was.
      augment: `config.augment` for a training split, whose random crops the source makes. Otherwise
        images are center-cropped.
      before: `kind` and `image_shape` of the split when the run began, which settle what arrays
        leave open.
      needs: the targets that the task needs, for a source that has several kinds; those of `like`
        if it is given. Without either, a source gives its usual ones.

    Raises:
      UserError: the source or the split does not exist, or its files cannot be used.
    """
    kind, colon, rest = config.source.partition(":")
    split, part = parse_split(name := split)
    if config.source == GIVEN:
        raise UserError(
            "config.data.source is given: the run was trained on sources that were handed to "
            "train(config, workdir, sources=...), which are not kept; hand one over as source=, or "
            "train with --config.data.source=FILE.py:NAME, which is found again",
            exit_code=1,
        )
    if is_own(config.source):
        source = cut_source(_open_own(config, split), part, config)
        return _agreeing(source, config, name, like, augment)
    if kind not in [pattern.partition(":")[0] for pattern in PATTERNS] or bool(colon) != (
        f"{kind}:" in " ".join(PATTERNS)
    ):
        raise UserError(
            f"unknown source {config.source!r}{nearest(kind, PATTERNS)}; the sources are "
            f"{', '.join(PATTERNS)}"
        )
    if config.frames and kind != "folder":
        raise UserError(
            f"config.data.frames is {config.frames}, which is for folder:PATH, whose folders of "
            f"images are clips; leave it at 0 for {config.source}"
        )
    rest = str(at_home(rest, "config.data.source")) if is_address(rest) else rest
    if kind == "xo":
        opened: Source = _draw_xo(config, split)
    elif kind in SCENES:
        wanted = tuple(read_targets(like)) if like else needs
        # A detector has a class for each kind of letter, and none for neither.
        unmasked = "classes" in wanted and "segmentation" not in wanted
        kinds = {"single": kind == "xo_boxes", "unmasked": unmasked, "instances": "masks" in wanted}
        settings = dict(config.scenes, **kinds)
        opened = scenes.draw_scenes(split, **settings)
    elif kind == "arrays":
        opened = arrays.read_arrays(rest, split, config, like or before)
    else:
        needs = tuple(read_targets(like)) if like else tuple(needs)
        opened = _open_stored(kind, rest, config, split, like, augment, needs)
    source = cut_source(opened, part, config)
    if isinstance(source, StoredSource) and source.element.kind == "text" and config.text.words:
        source = _as_words(source, config, like)
    source = _agreeing(source, config, name, like, augment)
    if (
        isinstance(source, StoredSource)
        and not source.random
        and source.size <= config.resident_limit
    ):
        return load(source, config.skip_unreadable, f"{config.source}, split {name!r}")
    return source


def _open_own(config: Any, split: str) -> Source:
    """A custom source; raises UserError if it fails, or does not return a source."""
    key = "config.data.source"
    make = own(config.source, key)
    check_takes(make, config.source, key, config, split)
    try:
        source = make(config, split)
    except UserError:
        raise
    except Exception as error:  # custom code may raise anything
        raise wrong(config.source, key, f"fails: {in_words(error)}") from error
    if not isinstance(source, Source):
        raise wrong(config.source, key, f"returned {type(source).__name__}")
    taken = [name for name in source.targets if name in RESERVED]
    if taken:
        raise UserError(
            f"{config.source}: has a target named {taken[0]!r}, which is reserved; rename it"
        )
    return source


def _agreeing(
    source: Source, config: Any, split: str, like: dict[str, Any] | None, augment: Any
) -> Source:
    """The source; raises UserError if it does not match `like`."""
    if not like:
        return source
    found, like = describe(source), dict(like)
    if like["kind"] == "image" and config.eval_image_size and augment is None:
        size = [config.eval_image_size] * 2
        like["image_shape"] = size + like["image_shape"][2:]
        if "targets" in like:  # masks have the size of their images
            like["targets"] = {
                name: {**target, "shape": size + target["shape"][2:]}
                if target["moves"].startswith("mask")
                else target
                for name, target in like["targets"].items()
            }
    check_fits(found, like, f"{config.source}: ", f"of split {split!r}")
    return source


def check_given(source: Source, like: Mapping[str, Any]) -> None:
    """Raise UserError unless a source that was handed over fits what the network is trained with.

    It may lack the last classes, as where they are only numbered.
    """
    found = describe(source)
    like = {**like, "class_names": like["class_names"][: len(found["class_names"]) or None]}
    check_fits(found, like, "", "of the source to evaluate on")


def check_fits(found: Mapping[str, Any], like: Mapping[str, Any], name: str, whose: str) -> None:
    """Raise UserError unless a description has the classes, shape, kind and targets of another."""
    for what in ("class_names", "words", "image_shape", "kind", "targets"):
        ours, theirs = found.get(what), like.get(what)
        if what == "targets":
            ours, theirs = (_but_several(targets) for targets in (ours, theirs))
        if ours != theirs:
            raise UserError(
                f"{name}the {what.replace('_', ' ')} {whose} are {short(ours)}, but the "
                f"network was trained with {short(theirs)}"
                f"{_differing(what, ours, theirs)}",
                exit_code=1,
            )


def _but_several(targets: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The targets of a description without the set of labels; None if a label is left alone."""
    if targets is None or SEVERAL not in targets:
        return targets
    return {k: v for k, v in targets.items() if k not in (SEVERAL, *LABEL)} or None


def _differing(what: str, found: Any, like: Any) -> str:
    """The classes that only one of two splits has, for a message."""
    differing = sorted(set(found) ^ set(like)) if what == "class_names" else []
    return f"; only one has {short(', '.join(differing))}" if differing else ""


def as_files(settings: Any) -> AnyConfig:
    """A copy of `config.data` that keeps a set on disk: its examples are read on demand."""
    return ConfigDict(settings.to_dict() | {"resident_limit": 0})


def eval_size(config: Any) -> int:
    """The image size in evaluation, by `config.data`, in pixels; 0 for that of the files."""
    return config.eval_image_size or config.image_size


def size_of(config: Any, training: bool) -> geometry.Size | None:
    """(height, width) of the images that the network sees, by `config.data`, in pixels; None for
    that of the files.
    """
    if config.canvas:
        return (config.canvas[0], config.canvas[1])
    side = config.image_size if training else eval_size(config)
    return (side, side) if side else None


def reading_of(
    config: Any, kind: str, shape: tuple[int, ...], data: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings in `config` (the `data` part of a config) that turn a file into an element of
    this kind and shape in evaluation; for JSON.

    `data` is the description of the run's data, which has the words of texts.
    """
    if kind == "image" or config.frames:
        # A set that is not resized has whole images of one size, of any shape. Other images can be
        # resized to that size only if it is square.
        height, width = shape[-3:-1]
        return {
            **({"frames": config.frames} if config.frames else {}),
            "image_size": height if height == width else 0,
            "crop_ratio": config.crop_ratio if eval_size(config) else 1.0,
            "decoder": config.decoder,
            "interpolation": config.interpolation,
            "background": config.background,
            **{name: list(config[name]) for name in ON_CANVAS},
        }
    if kind == "text":
        words = {"words": list(data["words"])} if "words" in data else {}
        return {"text": {key: config.text[key] for key in ("length", "alphabet")}, **words}
    return {"audio": config.audio.to_dict()}


def open_given(
    records: Records, reading: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> StoredSource:
    """Files or texts that belong to no set, decoded as a run's examples are in evaluation.

    A signal is read from a .wav file, like the run's sounds, from a .npy file, whose uint8 is
    divided by 255, or from the frames of a clip.

    Args:
      records: their payloads are file contents, those of a clip's frames, texts, or elements.
      reading: see `reading_of`.
      kind, shape: of the elements, see `interface.Element`. Reading a record of another shape
        raises DamagedError.

    Raises:
      UserError: the decoder is not installed.
    """
    # Networks that an earlier version has exported know no background, and no canvas.
    defaults = default_config().data
    newer = {name: defaults[name] for name in ("background", "interpolation", *ON_CANVAS)}
    config = cast(AnyConfig, ConfigDict(newer | reading))
    if kind == "image" or "frames" in reading:
        source = _middles(records, config, shape[-1])
    elif kind == "text":
        source = _texts(records, (), config, tuple(reading.get("words", ())))
    else:
        source = _sounds(
            records, (), config, lambda content: signals.read_wav(content, config.audio.rate)
        )

    def decode_one(payload: Any, key: tuple[int, int]) -> np.ndarray:
        if isinstance(payload, np.ndarray):
            element = payload
        elif isinstance(payload, tuple):  # the frames of a clip
            element = signals.to_unit(_stacked(payload, lambda frame: source.decode(frame, key)))
        elif kind == "signal" and payload.startswith(np.lib.format.MAGIC_PREFIX):
            element = signals.to_unit(signals.read_numbers(payload))
            element = element[..., None] if element.ndim == len(shape) - 1 else element
        else:
            # No targets move with these elements.
            element = cast(np.ndarray, source.decode(payload, key))
        if element.shape != shape:
            raise DamagedError(
                f"is {size_in_words(element.shape, kind)}, but the network takes "
                f"{size_in_words(shape, kind)}"
            )
        return element

    return dataclasses.replace(
        source,
        decode=decode_one,
        element=Element(shape, kind, "float32" if kind == "signal" else source.element.dtype),
    )


def _middles(records: Records, config: Any, channels: int) -> StoredSource:
    decoder = decode.choose_decoder(config.decoder, config.interpolation)
    shape = config.canvas or (config.image_size, config.image_size)

    def decode_one(content: bytes, key: tuple[int, int]) -> np.ndarray:
        return read_for_evaluation(content, config, channels, decoder)

    element = Element((*shape, channels))
    return StoredSource(records, decode_one, (), element, decode.decoder_versions(decoder))


def read_for_evaluation(content: bytes, settings: Any, channels: int, decoder: str) -> np.ndarray:
    """Decode an image file as evaluation sees it: [H, W, C] uint8.

    Args:
      content: of the file.
      settings: of `reading_of`, as a ConfigDict.
      channels, decoder: see `decode.decode_part`.

    Raises:
      DamagedError: the file cannot be read.
    """
    if not settings.canvas:
        ratio, background = settings.crop_ratio, settings.background
        size = settings.image_size
        return decode.decode_middle(content, size, channels, decoder, ratio, background)
    choose = partial(canvas.eval_part, settings=settings, size=0)
    pixels = decode.decode_part(content, choose, channels, decoder, False, settings.background)
    colour = canvas.pad_colour(settings.mean, channels)
    return canvas.laid_on(pixels, settings.canvas, colour)


def _draw_xo(config: Any, split: str) -> Arrays:
    for key in ("image_size", "eval_image_size"):
        if config[key]:
            raise UserError(
                f"config.data.{key} is {config[key]}; set the size of X's and O's with "
                "config.data.xo.size"
            )
    return xo.draw_split(split, **config.xo)


def _open_stored(
    kind: str,
    rest: str,
    config: Any,
    split: str,
    like: dict | None,
    augment: Any,
    needs: tuple[str, ...],
) -> StoredSource:
    if kind in TOYS:
        return _open_toy(kind, config, split)
    if kind == "text":
        trained = tuple(like["class_names"]) if like else ()
        records = lines.Lines(rest, split, trained, config.text.header, config.text.coarse)
        return _texts(records, records.class_names, config)
    channels = like["image_shape"][-1] if like and like["kind"] == "image" else 0
    classes = tuple(like["class_names"]) if like else ()
    size = size_of(config, augment is not None)
    if kind in ("masks", "coco", "voc", "csv"):
        if kind == "masks":
            records: Any = masks.open_masks(rest, split, size, classes)
        elif kind == "csv":
            records = tables.open_table(rest, split, config, needs, size, classes)
        else:
            open_set = coco.open_coco if kind == "coco" else voc.open_voc
            records = open_set(rest, split, config, needs, size)
        return _images(records, records.class_names, config, augment, channels)
    if kind == "nifti":
        shape = like["image_shape"][:3] if like else ()
        volumes = nifti.open_nifti(rest, split, config, classes, shape)
        return _masked_volumes(volumes)
    _check_boxes(config, needs)
    if kind == "folder":
        files, classes = folder.open_files(rest, split, config, classes)
        return _open_folder(files, classes, config, augment, channels)
    from jaxconv.data.tfds_sets import PreparedSet

    prepared = PreparedSet(rest, split, config, needs, size)
    if prepared.kind == "text":
        return _texts(prepared, prepared.class_names, config)
    if prepared.kind == "sound":
        rate = prepared.sample_rate
        if rate not in (0, config.audio.rate):
            raise UserError(
                f"{config.source}: has {rate} samples per second; set "
                f"--config.data.audio.rate={rate}",
                exit_code=1,
            )
        return _sounds(prepared, prepared.class_names, config, _as_sound)
    return _images(prepared, prepared.class_names, config, augment, channels or prepared.channels)


def _check_boxes(config: Any, needs: Sequence[str]) -> None:
    """Raise UserError if there are boxes, and the task does not need them."""
    if config.boxes and needs and "boxes" not in needs:
        raise UserError(
            f"config.data.boxes is {config.boxes!r}, and the task needs {', '.join(needs)}: set "
            "--config.task.name=localization, or leave it empty"
        )


def _open_folder(
    files: folder.Files, classes: tuple[str, ...], config: Any, augment: Any, channels: int
) -> StoredSource:
    kind = files.kind()
    for key, kinds in (("background", ("image", "clip")), ("boxes", ("image",))):
        if kind not in kinds and config[key]:
            raise UserError(
                f"config.data.{key} is {config[key]!r}, and {config.source} holds {kind}s; leave "
                "it empty"
            )
    if kind == "sound":
        return _sounds(
            files, classes, config, lambda content: signals.read_wav(content, config.audio.rate)
        )
    if kind == "volume":
        return _volumes(files, classes)
    if kind == "clip":
        return _clips(files, classes, config, augment, channels)
    if config.boxes:
        boxes = joined.BoxFiles(config.boxes, config.max_boxes, config.annotations)
        with_boxes = joined.FilesWithBoxes(files, boxes)
        return _images(with_boxes, classes, config, augment, channels)
    return _images(files, classes, config, augment, channels)


def _images(
    records: Records, classes: tuple[str, ...], config: Any, augment: Any, channels: int
) -> StoredSource:
    size: Any = size_of(config, augment is not None)
    decoder = decode.choose_decoder(config.decoder, config.interpolation)
    # Images of one size are cropped on the device. Images that are resized are cropped while they
    # are read, from all their pixels.
    crops = (augment.random_resized_crop.scale, augment.scale_jitter) if augment else ()
    crops += (augment.large_scale_jitter,) if augment else ()
    random = bool(size) and any(crops)
    jitter = augment.scale_jitter if augment is not None and size else ()
    if jitter and jitter[0] < size[0]:
        raise UserError(
            f"config.augment.scale_jitter starts at {jitter[0]}; it must be at least "
            f"data.image_size, {size[0]}"
        )
    channels = channels or (1 if _all(is_grey, records) else 3)
    choose_part = _part_chooser(config, size, augment, random)
    # Records with only a label may omit `targets`.
    targets = dict(getattr(records, "targets", LABEL))
    moving, colour = bool(size and moves_of(targets)), np.zeros(0, np.uint8)
    if config.canvas:
        targets |= canvas.TARGETS
        colour = canvas.pad_colour(config.mean, channels)
    kept = augment.kept_objects if augment is not None else "visible"

    def decode_one(content: bytes, key: tuple[int, int]) -> Any:
        chosen: list[Any] = []

        def choose(height: int, width: int) -> tuple[geometry.Box, geometry.Size]:
            chosen[:] = [choose_part(height, width, key), (height, width)]
            return chosen[0]

        way = choose if size else None
        pixels = decode.decode_part(content, way, channels, decoder, random, config.background)
        if not (moving or config.canvas):
            return pixels
        (box, seen), of_file = chosen
        transform = geometry.crop(box, seen)
        if not config.canvas:
            return Placed(pixels, transform, kept=kept)
        return Placed(canvas.laid_on(pixels, size, colour), transform, of_file, seen, kept)

    shape = (
        (*size, channels)
        if size
        else _first(records, lambda content: decode_one(content, (0, 0))).shape
    )
    return StoredSource(
        records,
        decode_one,
        classes,
        Element(shape),
        decode.decoder_versions(decoder),
        random,
        targets,
    )


def _part_chooser(config: Any, size: Any, augment: Any, random: bool) -> Callable[..., Any]:
    """The function (height, width, key) -> the part of an image, and its size after resizing.

    Args:
      config: `config.data`.
      size: (height, width) of the images that the network sees; None for that of the files.
      augment: `config.augment` in training, else None.
      random: whether parts are drawn by the key.
    """
    side = size[0] if size else 0

    def choose(height: int, width: int, key: tuple[int, int]) -> Any:
        if not random and (augment is None or config.canvas):
            return canvas.eval_part(height, width, config, side)
        # A generator costs 10 microseconds, so it is made only for random crops.
        draws = generator(key[0], "crop", key[1]) if random else None
        if draws is not None and augment.large_scale_jitter:
            factors = augment.large_scale_jitter
            return canvas.jittered(draws, height, width, size, config.sides, factors)
        if draws is not None and config.canvas:
            box = geometry.crop_box(draws, height, width, **augment.random_resized_crop)
            return box, canvas.fit_size(*box[2:], config.canvas, config.sides)
        return geometry.train_box(draws, height, width, side, augment), size

    return choose


def _sounds(
    records: Records, classes: tuple[str, ...], config: Any, read: Callable[[Any], np.ndarray]
) -> StoredSource:
    audio = config.audio
    length = round(audio.rate * audio.seconds)

    def form(samples: np.ndarray) -> np.ndarray:
        if audio.form == "waveform":
            return samples[:, None]
        return signals.log_mel(samples, audio.rate, audio.mels)[..., None]

    def decode_one(payload: Any, key: tuple[int, int]) -> np.ndarray:
        return form(signals.fit_length(read(payload), length))

    shape = form(np.zeros(length, np.float32)).shape
    return StoredSource(
        records, decode_one, classes, Element(shape, "signal", "float32"), f"numpy {np.__version__}"
    )


def _as_sound(samples: np.ndarray) -> np.ndarray:
    """TFDS's 16-bit integers -> [L] float32 from -1 to 1."""
    if not len(samples):
        raise DamagedError("holds no samples")
    return np.asarray(samples, np.float32) / 32768


def _texts(
    records: Records, classes: tuple[str, ...], config: Any, words: tuple[str, ...] = ()
) -> StoredSource:
    """Texts as codes of bytes, of `config.text.alphabet`, or of the words of a vocabulary."""
    length, alphabet = config.text.length, words or config.text.alphabet
    encode = signals.text_encoder(length, alphabet)
    return StoredSource(
        records,
        lambda payload, key: encode(_as_text(payload)),
        classes,
        Element((length,), "text", "uint16" if words else "uint8", signals.count_codes(alphabet)),
        words=words,
    )


def _as_text(payload: Any) -> str:
    return payload.decode(errors="replace") if isinstance(payload, bytes) else payload


def _as_words(source: StoredSource, config: Any, like: dict[str, Any] | None) -> StoredSource:
    """Texts with a code for each word, of the training split's vocabulary: that of `like`, or if
    this is the training split, its own.
    """
    if like:
        return _texts(source.records, source.class_names, config, tuple(like["words"]))
    texts = (_as_text(source.records[i][0]) for i in range(len(source)))
    words = signals.vocabulary_of(texts, config.text.words)
    if not words:
        raise UserError(f"{config.source}: no text of the training split has a word", exit_code=1)
    return _texts(source.records, source.class_names, config, words)


def _volumes(records: Records, classes: tuple[str, ...]) -> StoredSource:
    first = _first(records, signals.read_volume)
    return StoredSource(
        records,
        lambda content, key: signals.read_volume(content),
        classes,
        Element(first.shape, "signal", str(first.dtype)),
    )


def _clips(
    records: Records, classes: tuple[str, ...], config: Any, augment: Any, channels: int
) -> StoredSource:
    """Clips, whose frames are read like images in evaluation, in training too."""
    if config.canvas:
        raise UserError(f"config.data.canvas is {config.canvas}, and it is not for clips")
    decoder = decode.choose_decoder(config.decoder, config.interpolation)
    size = size_of(config, augment is not None)
    channels = channels or (1 if _all(lambda frames: all(map(is_grey, frames)), records) else 3)
    settings = ConfigDict(config.to_dict() | {"image_size": size[0] if size else 0})
    settings.crop_ratio = config.crop_ratio if size and augment is None else 1.0

    def decode_one(frames: tuple[bytes, ...], key: tuple[int, int]) -> np.ndarray:
        return _stacked(
            frames, lambda frame: read_for_evaluation(frame, settings, channels, decoder)
        )

    shape = _first(records, lambda frames: decode_one(frames, (0, 0))).shape
    versions = decode.decoder_versions(decoder)
    return StoredSource(records, decode_one, classes, Element(shape, "signal"), versions)


def _stacked(frames: tuple[bytes, ...], read: Callable[[bytes], Any]) -> np.ndarray:
    """A clip's frames, decoded: [T, H, W, C]; raises DamagedError unless they are of one size."""
    # A short clip repeats frames, which are decoded once.
    decoded = {content: read(content) for content in dict.fromkeys(frames)}
    shapes = {pixels.shape[:2] for pixels in decoded.values()}
    if len(shapes) > 1:
        sizes = " and ".join(f"{width} x {height}" for height, width in sorted(shapes)[:2])
        raise DamagedError(f"has frames of {sizes} pixels; set config.data.image_size")
    return np.stack([decoded[content] for content in frames])


def _masked_volumes(volumes: nifti.VolumeFiles) -> StoredSource:
    first = _first(volumes, lambda values: values)

    def decode_one(values: np.ndarray, key: tuple[int, int]) -> np.ndarray:
        return nifti.centred(nifti.standardised(values), volumes.size)

    return StoredSource(
        volumes,
        decode_one,
        volumes.class_names,
        Element((*volumes.size, first.shape[-1]), "signal", "float32"),
        f"numpy {np.__version__}",
        targets=volumes.targets,
    )


def _open_toy(kind: str, config: Any, split: str) -> StoredSource:
    toy, audio = config.toy, config.audio
    if kind == "tones":
        tones = toys.DrawnRecords(
            lambda random, label: toys.draw_tone(random, label, audio.rate, audio.seconds),
            len(toys.TONES),
            split,
            toy,
        )
        return _sounds(tones, toys.TONES, config, lambda samples: samples)
    if kind == "sentences":
        return _texts(
            toys.DrawnRecords(toys.draw_sentence, len(toys.TOPICS), split, toy),
            tuple(toys.TOPICS),
            config,
        )
    draw, classes, first = {
        "solids": (toys.draw_solid, toys.SOLIDS, toy.size),
        "xo_clips": (toys.draw_clip, toys.CLIPS, toy.size // 2),
    }[kind]
    return StoredSource(
        toys.DrawnRecords(
            lambda random, label: draw(random, label, toy.size), len(classes), split, toy
        ),
        lambda drawn, key: drawn,
        classes,
        Element((first, toy.size, toy.size, 1), "signal", "uint8"),
    )


def _all(test: Callable[[Any], bool], records: Records) -> bool:
    """Whether every readable record passes the test; stops at the first that fails."""
    for i in range(len(records)):
        try:
            if not test(records[i][0]):
                return False
        except DamagedError:
            continue
    return True


def _first(records: Records, decode_one: Callable[[Any], np.ndarray]) -> np.ndarray:
    """The first readable record, decoded."""
    why = ""
    for i in range(len(records)):
        try:
            return decode_one(records[i][0])
        except DamagedError as error:
            why = why or f"{records.name(i)}: {error}"
    raise UserError(
        f"none of the {len(records)} examples can be read; the first: {why}", exit_code=1
    )
