"""Evaluation of a run on corrupted images, which are computed on the device, see corruptions.py.

    error(kind) = mean over the severities of the share that is wrong
    mCE         = mean over the kinds of error(kind) / AlexNet's error(kind)

The mCE is of ImageNet's classes alone (Hendrycks and Dietterich 2019, section 4.2). Without the
photographs of frost it is the mean over the other kinds.
"""

import dataclasses
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.corruptions import (
    CORRUPTIONS,
    FROST,
    SEVERITIES,
    corrupt,
    read_textures,
)
from jaxconv.data.distortions import Textures
from jaxconv.data.interface import moves_of
from jaxconv.data.loading import make_loader, take
from jaxconv.data.sources import open_source
from jaxconv.data.wordnet import wordnet_ids
from jaxconv.errors import UserError
from jaxconv.files import expand
from jaxconv.train.build import build_eval_step, build_network
from jaxconv.train.ensemble import form_of_run
from jaxconv.train.evaluate import evaluate, evaluate_each
from jaxconv.train.other_data import Overrides, reading
from jaxconv.train.parallel import Parallel, in_32_bits, make_parallel
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import opened_config, saved_data


@dataclasses.dataclass(frozen=True, eq=False)
class Corrupted:
    """The errors of a run on corrupted images.

    Attributes:
      split, step: of the data and of the checkpoint.
      examples: how many.
      clean: the share of the uncorrupted images that is wrong.
      errors: kind -> severity -> the share that is wrong.
      mce: over kinds with all severities, of ImageNet's classes; None for others.
    """

    split: str
    step: int
    examples: int
    clean: float
    errors: dict[str, dict[int, float]]
    mce: float | None

    def mean(self, kind: str) -> float:
        """The mean of a kind over its severities."""
        return float(np.mean([*self.errors[kind].values()]))

    def lines(self) -> list[str]:
        """A table of the errors in percent, for people."""
        width = max(map(len, self.errors))
        severities = [n for n in SEVERITIES if any(n in of for of in self.errors.values())]
        heads = [f"{n:>7}" for n in severities]
        lines = [f"{'error, %':{width}}{''.join(heads)}   mean"]
        lines.append(f"{'clean':{width}}{' ' * 7 * len(severities)}{100 * self.clean:7.2f}")
        for kind, of in self.errors.items():
            cells = [f"{100 * of[n]:7.2f}" if n in of else " " * 7 for n in severities]
            lines.append(f"{kind:{width}}{''.join(cells)}{100 * self.mean(kind):7.2f}")
        mean = np.mean([self.mean(kind) for kind in self.errors])
        lines.append(f"{'mean':{width}}{' ' * 7 * len(severities)}{100 * mean:7.2f}")
        if self.mce is not None:
            without = (
                "" if len(self.errors.get(FROST, ())) == len(SEVERITIES) else ", without frost"
            )
            lines.append(f"mCE {100 * self.mce:.2f} % of AlexNet's{without}")
        if self.lacks_frost:
            lines.append("frost is left out: --frost=DIR gives its photographs")
        return lines

    @property
    def lacks_frost(self) -> bool:
        """Whether all kinds were measured but frost."""
        return self.errors.keys() == CORRUPTIONS.keys() - {FROST}

    def record(self) -> dict[str, Any]:
        """The same for JSON."""
        found = {
            "split": self.split,
            "examples": self.examples,
            "error": self.clean,
            "errors": {
                kind: {str(n): e for n, e in of.items()} for kind, of in self.errors.items()
            },
            "mean_error": float(np.mean([self.mean(kind) for kind in self.errors])),
        }
        found |= {"left_out": [FROST]} if self.lacks_frost else {}
        return found if self.mce is None else found | {"mce": self.mce}


class CorruptedLoader:
    """A loader whose images are corrupted on the devices; see `evaluate` for what it needs.

    Args:
      loader: of the clean images.
      parallel: the devices.
      kind, severity, textures: see `corrupt`.
    """

    def __init__(
        self,
        loader: Any,
        parallel: Parallel,
        kind: str,
        severity: int,
        textures: Textures | None = None,
    ):
        self.loader, self.examples, self.data = loader, loader.examples, {}

        def of_batch(textures: Any, data: Any, batch: dict[str, jax.Array]) -> Any:
            batch = take(data, batch)
            image = batch["image"]
            unit = image.astype(jnp.float32) / (255 if image.dtype == jnp.uint8 else 1)
            # An example has its own draws, whatever the batch that it is in.
            key = jax.random.fold_in(jax.random.key(severity), zlib.crc32(kind.encode()))
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])
            changed = jax.vmap(lambda k, x: corrupt(k, x, kind, severity, textures))(keys, unit)
            return {}, batch | {"image": jnp.floor(changed * 255).astype(jnp.uint8)}

        self._textures = textures if kind == FROST else None
        self._compiled = parallel.compile_eval(of_batch, self._textures, each=True)
        self._textures = parallel.to_steps(jax.tree.map(jnp.asarray, self._textures))

    @property
    def left_out(self) -> int:
        """Examples that cannot be read."""
        return self.loader.left_out

    def eval_batches(self, batch_size: int) -> Iterator[Any]:
        """The batches of the loader, corrupted."""
        for batch in self.loader.eval_batches(batch_size):
            yield self._compiled(self._textures, self.loader.data, batch)[1]


@in_32_bits
def evaluate_corrupted(
    workdir: str,
    corruptions: Sequence[tuple[str, int]],
    split: str = "",
    checkpoint: str = "latest",
    devices: list | None = None,
    overrides: Overrides = (),
    frost: str | os.PathLike[str] = "",
) -> Corrupted:
    """Evaluate a run on corrupted images.

    Args:
      workdir, split, checkpoint, devices, overrides: as for `evaluate_run`.
      corruptions: (kind, severity) pairs, see `corruptions.read_corruptions`.
      frost: the folder of its photographs, which that kind needs.

    Raises:
      UserError: as `evaluate_run`; or its task has no top-1, its data are not images of 1 or 3
        channels, or the photographs cannot be used.
    """
    folder = expand(workdir)
    config, description = opened_config(folder, overrides), saved_data(folder)
    parallel = make_parallel(config.parallel, devices or jax.local_devices())
    network = build_network(config, description, parallel.axis_name)
    figure, split = network.task.figures[0], split or config.data.eval_split
    _check(config, description, network.task)
    with reading(config):
        source = open_source(config.data, split, like=description)
    state, step = restore_run(folder, checkpoint, network.abstract, parallel, config)
    state, form = parallel.to_steps(state), form_of_run(config, folder)
    each = network.task.keeps
    eval_step = build_eval_step(config, description, network, parallel.axis_name, form, each=each)
    compiled = parallel.compile_eval(eval_step, network.abstract, each=each)
    loader, key = make_loader(source, parallel, config.data), figure.key
    key = f"ensemble_{key}" if network.members else key

    def error(loader: Any) -> float:
        settings = (parallel, state, loader, config.eval.batch_size, network.members)
        finish = network.task.finish
        found = (
            evaluate_each(compiled, *settings, finish)[0]
            if each
            else evaluate(compiled, *settings, finish)
        )
        return 1 - found[key]

    textures = None
    if any(kind == FROST for kind, _ in corruptions):
        textures = read_textures(os.fspath(frost), *source.element.shape[:2])
    clean, errors = error(loader), {}
    for kind, severity in corruptions:
        changed = CorruptedLoader(loader, parallel, kind, severity, textures)
        errors.setdefault(kind, {})[severity] = error(changed)
    examples = loader.examples - loader.left_out
    return Corrupted(split, step, examples, clean, errors, mce(errors, network.task.class_names))


def mce(errors: dict[str, dict[int, float]], class_names: Sequence[str]) -> float | None:
    """The mean corruption error over kinds with all severities; None unless the classes are
    ImageNet's, all 1,000.
    """
    whole = {kind: of for kind, of in errors.items() if len(of) == len(SEVERITIES)}
    if len(class_names) != 1000 or not wordnet_ids(class_names) or not whole:
        return None
    shares = [np.mean([*of.values()]) / CORRUPTIONS[kind].alexnet for kind, of in whole.items()]
    return float(np.mean(shares))


def _check(config: Any, description: dict[str, Any], task: Any) -> None:
    figure, channels = task.figures[0], description["image_shape"][-1]
    moving = moves_of(task.targets)
    if not (figure.share and figure.higher) or "label" not in task.needs or moving:
        raise UserError(
            f"--corruptions: the task {config.task.name} cannot be measured on corrupted images: "
            "it is for the share of labels that are right"
        )
    if description["kind"] != "image" or channels not in (1, 3):
        raise UserError(
            f"--corruptions: are of images with 1 or 3 channels; {config.data.source} holds "
            f"{description['kind']}s with {channels}"
        )
