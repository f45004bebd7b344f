"""Whole images, each of its own shape, and batches of images of one shape; mirror images."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxconv.data import decode
from jaxconv.data.geometry import Box, Size, whole_size
from jaxconv.data.interface import OWN_SIZE, Batch, Element, Source, as_targets
from jaxconv.data.loading import Reader
from jaxconv.data.stored import Records, StoredSource
from jaxconv.errors import UserError

# Masks are padded to a multiple of this, so that there are few shapes.
_CANVAS = 128


class WholeImages(StoredSource):
    """Whole images, each of its own shape."""

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Read and decode example i; raises DamagedError."""
        payload, targets = self.records[i]
        return {"image": self.decode(payload, key), **as_targets(targets)}


def open_whole(
    records: Records, reading: Mapping[str, Any], channels: int, scale: int, step: int
) -> WholeImages:
    """Whole images in files, resized by `geometry.whole_size`.

    Args:
      records: whose payloads are contents of files.
      reading: see `sources.reading_of`.
      channels: of the images.
      scale, step: see `geometry.whole_size`.
    """
    decoder, background = decode.decoder_of(reading), reading.get("background", "")

    def choose(height: int, width: int) -> tuple[Box, Size]:
        return (0, 0, height, width), whole_size(height, width, scale, step)

    return WholeImages(
        records,
        lambda content, key: decode.decode_sized(content, choose, channels, decoder, background),
        (),
        Element((scale, scale, channels)),
        decode.decoder_versions(decoder),
    )


class OwnSizes(Source):
    """Whole images with their masks as they are stored, for evaluation at the images' own size.

    An example has its `image`, resized by `geometry.whole_size`; the masks, not resized but padded
    at the bottom and the right; and `OWN_SIZE` [2] int32, their height and width without padding.

    Args:
      stored: the same examples, cut out of their images.
      settings: `config.data`.
      scale, step: see `geometry.whole_size`.
      needs: names of the targets that are masks.
    """

    def __init__(
        self, stored: StoredSource, settings: Any, scale: int, step: int, needs: Sequence[str]
    ):
        self._stored, self._settings, self._needs = stored, settings, needs
        self._scale, self._step = scale, step
        self._decoder = decode.choose_decoder(settings.decoder, settings.interpolation)
        self.class_names, self.element = stored.class_names, stored.element
        self.targets, self.decoder, self.notes = stored.targets, stored.decoder, stored.notes

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Read and decode example i.

        Raises:
          DamagedError: it cannot be read.
          UserError: a mask has another size than its image.
        """
        payload, targets = self._stored.records[i]
        masks = {name: np.asarray(targets[name]) for name in self._needs}
        size = next(iter(masks.values())).shape[:2]

        def choose(height: int, width: int) -> tuple[Box, Size]:
            if size != (height, width):
                raise UserError(
                    f"{self.name(i)}: is {width}x{height} pixels, and its mask "
                    f"{size[1]}x{size[0]}; make them equal",
                    exit_code=1,
                )
            return (0, 0, height, width), whole_size(height, width, self._scale, self._step)

        channels, background = self.element.shape[-1], self._settings.background
        image = decode.decode_sized(payload, choose, channels, self._decoder, background)
        canvas = tuple(-(-side // _CANVAS) * _CANVAS for side in size)
        return {
            "image": image,
            **{name: _padded(mask, canvas) for name, mask in masks.items()},
            OWN_SIZE: np.array(size, np.int32),
        }

    def name(self, i: int) -> str:
        """The name of example i in messages."""
        return self._stored.name(i)

    def checksum(self) -> int:
        """That of the stored examples."""
        return self._stored.checksum()


class Mirrored(Source):
    """The mirror images of another source, with its targets as they are.

    Of an image on a canvas, `seen` [2] is mirrored, and the padding stays on its right.
    """

    def __init__(self, source: Source):
        self.source, self.class_names = source, source.class_names
        self.element, self.targets = source.element, source.targets
        self.decoder, self.random, self.notes = source.decoder, source.random, source.notes

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Read example i; its image is mirrored."""
        example = self.source.read(i, key)
        image = np.asarray(example["image"])
        width = int(example["seen"][1]) if "seen" in example else image.shape[1]
        mirrored = np.concatenate([image[:, :width][:, ::-1], image[:, width:]], axis=1)
        return {**example, "image": mirrored}

    def name(self, i: int) -> str:
        """The source's name of the example."""
        return self.source.name(i)

    def checksum(self) -> int:
        """The source's checksum."""
        return self.source.checksum()


def _padded(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    return np.pad(mask, [(0, new - old) for new, old in zip(size, mask.shape, strict=True)])


class GroupedLoader:
    """Batches of examples of different shapes; each batch holds examples of one shape.

    Args, Attributes: as for `loading.StreamedLoader`.
    """

    def __init__(self, source: Source, parallel: Any, settings: Any):
        self.data: dict[str, Any] = {}
        self.examples, self._parallel = len(source), parallel
        share = 1.0 if settings.skip_unreadable else settings.damaged_share
        self._reader = Reader(source, settings.threads, share)

    @property
    def left_out(self) -> int:
        """Examples that the last evaluation could not read, and did not count."""
        return self._reader.left_out

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every example once, as batches fill up: `image`, targets, `index` and `mask`."""
        groups: dict[Any, list[Mapping[str, Any]]] = collections.defaultdict(list)
        for example in self._reader.examples():
            shapes = tuple(np.shape(value) for value in example.values())
            groups[shapes].append(example)
            if len(groups[shapes]) == batch_size:
                yield self._batch(groups.pop(shapes), batch_size)
        for group in groups.values():
            yield self._batch(group, batch_size)

    def _batch(self, examples: list[Mapping[str, Any]], batch_size: int) -> Batch:
        mask = (np.arange(batch_size) < len(examples)).astype(np.float32)
        filled = examples + examples[:1] * (batch_size - len(examples))
        return self._parallel.place(
            {name: np.stack([example[name] for example in filled]) for name in examples[0]}
            | {"mask": mask}
        )
