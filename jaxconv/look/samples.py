"""What a network is shown: a grid of examples as they leave the augmentation."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def sample_grid(images: np.ndarray, labels: Sequence[int], class_names: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> Any:
    """A figure of examples, each with the name of its class.

    Args:
      images: [N, ..., C] as the network gets them. Images are drawn as they are, of a volume its middle slice, of a waveform its curve,
        of a spectrogram [N, T, F, 1] its picture with time going down.
      labels: [N].
      class_names: one name a class.
      mean, std: of the normalisation, which is undone.
    """
    from matplotlib.figure import Figure

    columns = max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, label in zip(axes, np.asarray(images) * np.array(std) + np.array(mean), labels, strict=False):
        axis.set_title(class_names[label].split(",")[0][:18], fontsize=7)
        if image.ndim == 2:
            axis.plot(image[:, 0], linewidth=0.5)
        else:
            picture = image[len(image) // 2] if image.ndim == 4 else image
            if picture.shape[-1] == 3:
                axis.imshow(np.clip(picture, 0, 1))
            else:
                axis.imshow(picture[..., 0], cmap="gray")
    return figure


def text_grid(texts: Sequence[str], labels: Sequence[int], class_names: Sequence[str]) -> Any:
    """A figure of texts, one a line, each after the name of its class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.3 * len(texts) + 0.3))
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        # No mathematics between dollar signs.
        line = f"{class_names[label][:18]:18}  {text[:90]}".replace("$", r"\$")
        figure.text(0.02, 1 - (row + 1) / (len(texts) + 1), line, fontsize=8, family="monospace")
    return figure
