"""A run from command to report: train, then draw the curves and write the page."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from jaxconv.config import load_config
from jaxconv.data.interface import Source
from jaxconv.drawing.fonts import save_figure
from jaxconv.errors import in_words
from jaxconv.files import whole_file
from jaxconv.look.curves import loss_and_accuracy
from jaxconv.train.start import Finished, start
from jaxconv.train.teacher import TeacherWeights
from jaxconv.train.workdir import read_metrics
from jaxconv.weights.preprocessing import networks_of, with_preprocessing
from jaxconv.weights.pretrained import read_weights
from jaxconv.weights.teaching import read_teaching

log = logging.getLogger(__name__)


def train(
    config: Any,
    workdir: str | os.PathLike[str],
    restart: bool = False,
    devices: list | None = None,
    sources: tuple[Source, Source] | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train from a config, or resume the run in the workdir; then draw its curves.

    With `config.log.report`, also write its page.

    Args:
      config: the whole config; or as for `--config`: `FILE.py[:ARGUMENT]` or `jaxconv:NAME`.
      workdir: folder of the run; see train/workdir.py for its contents. Several processes share
        it.
      restart: move an existing run aside and start from scratch.
      devices: those to use; all by default.
      sources: to train and to evaluate on, such as `jaxconv.data.from_sequence` makes; by default
        those of the config.
      callbacks: objects with methods such as `on_evaluation`, see train/callbacks.py, in addition
        to those of `config.callbacks`.

    Returns:
      `split`, and what `evaluate` returns for the final weights.

    Raises:
      UserError: the config, the data or the workdir cannot be used, the loss became infinite or
        NaN, another process was lost, or SIGTERM stopped the run (`exit_code` 75).
    """
    if isinstance(config, (str, os.PathLike)):
        config = load_config(config)
    config = with_preprocessing(config, workdir, restart)

    def read(place: str) -> tuple[dict[str, Any], str]:
        return read_weights(place, networks_of(config))

    def read_teacher(place: str) -> TeacherWeights:
        return read_teaching(place, networks_of(config))

    finished = start(config, workdir, restart, devices, sources, callbacks, read, read_teacher)
    if finished.parallel.process[0] == 0:
        _draw_curves(finished)
        if config.log.report:
            _write_report(finished)
    return finished.result


def _draw_curves(finished: Finished) -> None:
    folder = finished.folder
    with whole_file(folder / "curves.png") as temporary:
        rows = {folder.name: read_metrics(folder)}
        save_figure(loss_and_accuracy(rows, type(finished.task)), temporary, dpi=120)


def _write_report(finished: Finished) -> None:
    """Write the run's page. If it fails, the training has still succeeded."""
    try:
        from jaxconv.report.write import report

        # One of several processes cannot restore a checkpoint alone: all of them would have to.
        alone = finished.parallel.process[1] == 1
        report(finished.folder, weights=alone, source=finished.eval_source)
    except Exception as error:
        log.warning("report.html was not written: %s", in_words(error))
