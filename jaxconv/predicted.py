"""Pictures of predictions for image files, and the masks themselves, as PNG."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxconv.data.decode import decode_image, decoder_of
from jaxconv.errors import UserError, in_words
from jaxconv.files import check_new
from jaxconv.predict import GivenRecords, Item, Prediction
from jaxconv.weights.export import Predictor


def write_pictures(
    network: Predictor, predictions: Iterable[Prediction], out: str
) -> Iterator[Prediction]:
    """Pass predictions of images on, and write for each `NAME.png`, the image with its prediction,
    and what the task's `images` gives, such as `NAME_mask.png`.

    Args:
      network: that predicted them.
      predictions: see `predict_items`.
      out: a new or empty folder; `NAME` is that of the file, with a number if it is taken.

    Raises:
      UserError: they are not images, or the folder cannot be written.
    """
    if network.kind != "image":
        raise UserError(f"--out: draws images, and the network reads {network.kind}s")
    from jaxconv.drawing.fonts import save_figure

    folder, taken = check_new(out), set[str]()
    for one in predictions:
        stem = Path(one.item.file).stem if one.item.file != "-" else "input"
        numbered = (f"{stem}_{k}" for k in itertools.count(2))
        name = next(n for n in itertools.chain([stem], numbered) if n not in taken)
        taken.add(name)
        figure = network.task.draw([_pixels(one.item, network)], [{}], [one.served])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_figure(figure, folder / f"{name}.png", dpi=120)
            for what, image in network.task.images(one.served).items():
                image.save(folder / f"{name}_{what}.png")
        except OSError as error:
            raise UserError(
                f"--out={out}: cannot be written ({in_words(error)}); give a writable folder",
                exit_code=1,
            ) from error
        yield one


def _pixels(item: Item, network: Predictor) -> np.ndarray:
    """The image [H, W, C] of an item that has been read."""
    content, _ = GivenRecords([item])[0]
    if isinstance(content, np.ndarray):
        return content
    assert isinstance(content, bytes)  # pictures are of images alone
    reading = network.description["reading"]
    background, decoder = reading.get("background", ""), decoder_of(reading)
    channels = network.input_shape[-1]
    whole = lambda height, width: (0, 0, height, width)  # noqa: E731
    return decode_image(content, 0, channels, whole, decoder, background=background)
