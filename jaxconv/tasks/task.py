"""The interface between the engine and a task. A custom task derives from `Task`.

    figures, training   what it measures in evaluation and in training
    needs               the targets of an example that it learns from, besides `image`
    model, loss, values the network; the training loss; the metrics of each example
    sums, keep, finish  what evaluation sums up on the devices, what it returns of each example to
                        the host, and the figures computed from both
    serve, describe     what `export` returns to programs and `predict` prints for people
    draw, overlay, pictures, sections, tables   what `look`, the playground, `report` and `evaluate`
                        show

A task with one number per example only needs `needs`, `figures`, `loss` and `values`; see
experiments/own_task.py. Device functions are pure: they run under jit, pmap and vmap.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.geometry import Transform, move
from jaxconv.data.interface import Source, Target, read_targets
from jaxconv.errors import UserError
from jaxconv.tasks.intervals import CONFIDENCE, exact_interval, is_share

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure that a task measures.

    Attributes:
      key: its name in results, and with `eval/` or `train/` before it in metrics.jsonl.
      title: in tables and curves.
      unit: such as `nats` or `degrees`; empty for none.
      higher: whether more is better.
      share: whether it is a share from 0 to 1, shown in percent.
      panel: title of the curve; empty for no curve.
      name: a longer title, where there is room; empty for `title`.
    """

    key: str
    title: str
    unit: str = ""
    higher: bool = False
    share: bool = False
    panel: str = ""
    name: str = ""

    @property
    def words(self) -> str:
        """The longer title, where there is room for it."""
        return self.name or self.title

    def show(self, value: float | None) -> str:
        """The value as text, without the unit; `-` for None."""
        if value is None:
            return "-"
        return f"{100 * value:.2f} %" if self.share else f"{value:.4f}"


@dataclasses.dataclass(frozen=True)
class Overlay:
    """What a network says about one image, as numbers to draw over it.

    Attributes:
      said: the same in a few words.
      shares: [K] a number from 0 to 1 for each class, such as its probability.
      mask: [H, W] uint8, the class of each pixel, 255 for none; None without a mask.
      boxes: [n, 4] float32 (top, left, bottom, right), in pixels of the image.
      labels, scores: [n] class and score of each box.
      points: [n, J, 3] the keypoints of each box: y, x in pixels, and a score.
      lines: pairs of keypoints that a line joins.
    """

    said: str
    shares: np.ndarray
    mask: np.ndarray | None = None
    boxes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    scores: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    points: np.ndarray | None = None
    lines: Sequence[tuple[int, int]] = ()


class Task:
    """A task on the data of a run; the base class of all tasks.

    Args:
      config: the whole config.
      description: of the data, see `interface.describe`.

    Attributes:
      axis_name: of the devices under `pmap`, for a loss that depends on the whole batch; else None.
      files: those of `writers` that an evaluation will write; `keep` may return more for them.
      figures: what it measures; the first one ranks checkpoints and sweeps and drives `plateau`.
      training: keys of `figures` that `training_values` measures while training.
      needs: targets of an example that it reads.
      uses: further targets that it reads where a source has them.
      settings: the keys of `config.task.kwargs` that it accepts, with their defaults.
      keeps: whether `finish` needs what `keep` returns of each example, during training too.
      views: the views of an image that evaluation may use, see evaluation/views.py. With `dense`,
        `kept_outputs` names the network's outputs among what `keep` returns.
      joins_views: whether `join_passes` joins the views `center` and `flip`, each kept on its own:
        first that of the images, then that of their mirror images, whose targets are not mirrored.
      served_moves: how what `serve` returns moves with the pixels of the image, by name, see
        data/geometry.py; `predict` gives it in the pixels of the file.
      of_pixels: whether the outputs are logits [B, H, W, K] of the input's pixels. The batch may
        then hold `OWN_SIZE` [B, 2] int32, see data/interface.py: its masks have that size, and the
        outputs do not.
    """

    figures: tuple[Figure, ...] = (Figure("loss", "loss", panel="Loss"),)
    training: ClassVar[tuple[str, ...]] = ()
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    settings: ClassVar[Mapping[str, Any]] = {}
    keeps: ClassVar[bool] = False
    views: ClassVar[tuple[str, ...]] = ("center",)
    kept_outputs: ClassVar[str] = ""
    joins_views: ClassVar[bool] = False
    served_moves: ClassVar[Mapping[str, str]] = {}
    of_pixels: ClassVar[bool] = False

    axis_name: str | None = None
    files: tuple[str, ...] = ()

    def __init__(self, config: Any, description: dict[str, Any]):
        self.config, self.description = config, description
        self.kwargs = {**self.settings, **config.task.kwargs}

    # Checks of the config and the data, and the network.

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raise UserError for settings that the task does not use, before the data is read.

        By default a task uses no settings of `config.loss` and no `config.eval.metrics`.
        """
        given = {"loss.name": config.loss.name != "softmax", "eval.metrics": config.eval.metrics}
        given |= {f"loss.{key}": config.loss[key] for key in ("threshold", "label_smoothing")}
        given["loss.class_weights"] = config.loss.class_weights
        for key, value in given.items():
            if value:
                raise UserError(
                    f"config.{key}: the task {config.task.name} does not use it; leave it at its "
                    "default"
                )

    @classmethod
    def reads(cls, config: Any) -> tuple[str, ...]:
        """The targets that a source is asked for; by default `needs` and `uses`."""
        return cls.needs + cls.uses

    @classmethod
    def measures(cls, config: Any) -> tuple[Figure, ...]:
        """Those of `figures` that a run of this config has; by default all."""
        return cls.figures

    def check(self) -> None:
        """Raise UserError unless the examples have the needed targets and the config fits."""
        has = self.targets
        for name in self.needs:
            if name not in has:
                raise UserError(
                    f"config.task.name is {self.config.task.name!r}, which needs the target "
                    f"{name!r} for each example; {self.config.data.source} has {', '.join(has)}",
                    exit_code=1,
                )
        for key in ("mixup", "cutmix"):
            if self.config.augment[key] and type(self).mix is Task.mix:
                raise UserError(
                    f"config.augment.{key} is {self.config.augment[key]}; the task "
                    f"{self.config.task.name} cannot mix its targets: leave it at 0"
                )

    @classmethod
    def count_classes(cls, source: Source) -> np.ndarray | None:
        """How often each class occurs in the training data, [K], for `loss.class_weights`.

        By default it is the examples of each label; None without labels.
        """
        if "label" not in source.targets:
            return None
        return np.bincount(source.labels_of_all(), minlength=len(source.class_names))

    @property
    def targets(self) -> dict[str, Target]:
        """The targets of an example, by name."""
        return read_targets(self.description)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty if the task has none."""
        return tuple(self.description["class_names"])

    if TYPE_CHECKING:
        outputs: int  # a subclass may also set it as an attribute
    else:

        @property
        def outputs(self) -> int:
            """Number of outputs of the network's last layer, for `create_model`."""
            return len(self.class_names)

    def model(self, axis_name: str | None = None) -> Any:
        """The Linen module, called as (images, train=).

        By default it is the network of `config.model` with `outputs` outputs. It may return any
        pytree of arrays whose first axis is the batch.
        """
        from jaxconv.models.configured import build_model

        return build_model(self.config.model, self.outputs, axis_name)

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the metrics of a training batch besides the loss; by default `training`."""
        return self.training

    # Training, on the devices. The batch has `RANDOM_KEY` [B], for what is drawn at random.

    def call(self, batch: Batch) -> Mapping[str, Any]:
        """Further arguments of the network in training, by name, that depend on the batch."""
        return {}

    def eval_call(self, batch: Batch) -> Mapping[str, Any]:
        """The same in evaluation; what it leaves out has its default, as in `predict`."""
        return {}

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The training loss, [B] float32."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def make_loss(self, swept: Mapping[str, jax.Array]) -> Callable[[Any, Batch], jax.Array]:
        """`loss`, with the settings that differ across an ensemble passed by name and traced."""
        return self.loss

    def distilled(self, outputs: Any, taught: Any) -> jax.Array:
        """The loss [B] of outputs against those of a teacher, by `config.distill`.

        Without this method a task cannot be learned from a teacher, see train/distill.py.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot learn from a teacher")

    def training_values(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """The metrics of a training batch besides the loss, [B] by the names of `logged`."""
        values = self.values(outputs, batch) if self.training else {}
        return {key: values[key] for key in self.training}

    def mix(
        self, batch: Batch, opposite: Callable[[jax.Array], jax.Array], share: jax.Array
    ) -> dict[str, jax.Array]:
        """Targets of a batch whose images were mixed by mixup or cutmix.

        Args:
          batch: the batch before mixing; `kept` [1, H, W] is the share of each pixel that stays.
          opposite: maps values [B, ...] to those of the example that each was mixed with.
          share: of the image that each example keeps.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot mix its targets")

    # Evaluation, on the devices.

    def values(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """The metrics of each example, [B] float32 by key; their means are the figures."""
        return {}

    def eval_loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The loss that evaluation measures, [B]."""
        return self.loss(outputs, batch)

    def measured(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`loss` and `values` of each example."""
        return {"loss": self.eval_loss(outputs, batch), **self.values(outputs, batch)}

    def sums(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Values to sum over all examples, devices and processes, of any shape, including `loss`.

        The batch has `mask` [B], which is 0 for padding examples.
        """
        values = self.measured(outputs, batch)
        return {name: masked_sum(value, batch["mask"]) for name, value in values.items()}

    def keep(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """The values of each example that the host receives, [B, ...] by name."""
        return self.measured(outputs, batch)

    def combine(self, outputs: Any) -> Any:
        """Combine the predictions of ensemble members or views: [M, B, ...] -> [B, ...].

        By default it is, for each example, the mean of those in which all numbers are finite. The
        outputs of a member that has diverged on any example of a set are all NaN here.
        """
        return jax.tree.map(_finite_mean, outputs)

    # Evaluation, on the host.

    def finish(
        self,
        sums: Mapping[str, np.ndarray],
        examples: int,
        kept: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, float]:
        """The figures by key, including `loss`.

        Args:
          sums: over all examples, float64.
          examples: how many.
          kept: what `keep` returned of each example, in order, if `keeps` is set.
        """
        return means(sums, examples, kept)

    def outcomes(self, kept: Mapping[str, np.ndarray], index: np.ndarray) -> Any:
        """The results of every example of a set, from which more than the figures can be computed.

        Args:
          kept: what `keep` returned of each example, [N, ...].
          index: [N] the examples' positions in their source.
        """
        return Measured(
            {name: np.asarray(value, np.float64) for name, value in kept.items()}, index
        )

    def join_passes(self, passes: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """Join what `keep` returned in several passes over a set into one."""
        (one,) = passes
        return one

    def more_figures(self, outcomes: Any) -> dict[str, float]:
        """Figures by key that are computed from the outcomes rather than from sums."""
        return {}

    def averaged(self, each: Sequence[Any]) -> Any:
        """The outcomes of several networks' averaged prediction; None if it cannot be computed."""
        return None

    def fused(self, each: Sequence[Any]) -> Any:
        """The outcomes of what several networks have found together, where that is no mean of their
        outputs; None if it cannot be computed.
        """
        return None

    def joint_figures(self, outcomes: Any) -> dict[str, float]:
        """The figures by key of an averaged prediction, or of `fused`."""
        return {}

    def restricted(self, outcomes: Any) -> tuple[Any, int]:
        """The outcomes with predictions among the classes that have examples, and their number.

        Raises:
          UserError: the task has no such outcomes.
        """
        raise UserError(
            f"--only_present: the task {self.config.task.name} cannot leave out classes"
        )

    def truth(self, outcomes: Any) -> np.ndarray:
        """The ground truth, [N], which shows whether two runs saw the same examples."""
        return np.zeros(len(outcomes))

    def truth_in_words(self, outcomes: Any, place: int) -> str:
        """The ground truth of one example, for messages."""
        return str(self.truth(outcomes)[place])

    def intervals(self, outcomes: Any, resamples: int) -> dict[str, tuple[float, float]]:
        """(low, high) of figures by key: exact ones of shares, the rest by the bootstrap."""
        shares = {
            name: exact_interval(value)
            for name, value in outcomes.values.items()
            if self.figure(name).share and np.ndim(value) == 1 and is_share(value)
        }
        return bootstrap_means(outcomes.values, resamples) | shares

    @classmethod
    def figure(cls, key: str) -> Figure:
        """The figure of a key, `eval/KEY` or `ensemble_KEY`; a plain one for a custom metric."""
        key = key.removeprefix("eval/").removeprefix("train/").partition("/")[0]
        key = key.removeprefix("ensemble_")
        plain = Figure(key, key, higher="loss" not in key)
        return next((figure for figure in cls.figures if figure.key == key), plain)

    @classmethod
    def metric(cls, name: str) -> str:
        """The name in metrics.jsonl of a metric in the config; empty: the first figure's."""
        return name or f"eval/{cls.figures[0].key}"

    # For programs and people.

    def serve(self, outputs: Any) -> dict[str, jax.Array]:
        """What an exported program returns, [B, ...] by name."""
        return {"outputs": outputs} if not isinstance(outputs, dict) else outputs

    @classmethod
    def describe(
        cls, served: Mapping[str, np.ndarray], description: Mapping[str, Any], top: int
    ) -> tuple[list[str], dict[str, Any]]:
        """What `predict` shows of one example: lines for people, and an object for JSON.

        Args:
          served: what `serve` returns for it, [...] by name.
          description: of the network, see weights/export.py.
          top: the most answers to give, where there are several.
        """
        said = {name: np.asarray(value).tolist() for name, value in served.items()}
        lines = [f"  {name}: {_short_numbers(value)}" for name, value in served.items()]
        return lines, said

    def overlay(self, served: Mapping[str, np.ndarray]) -> Overlay | None:
        """What the playground draws over an image; None: its votes for each class are shown.

        Args:
          served: what `serve` returns for it, [...] by name.
        """
        return None

    def caption_of(self, targets: Mapping[str, Any]) -> str:
        """The caption of an example in a picture: its targets, in one or more lines."""
        return "\n".join(_captions({name: targets[name] for name in self.needs}))

    def draw_targets(self, images: Any, targets: Sequence[Mapping[str, Any]]) -> Any:
        """A matplotlib figure of N examples with their targets.

        Args:
          images: see `drawing.samples.draw_example`.
          targets: of each by name.
        """
        from jaxconv.drawing.samples import captioned_grid, short_name

        return captioned_grid(images, [short_name(self.caption_of(one), 60) for one in targets])

    def draw(
        self,
        images: Sequence[Any],
        targets: Sequence[Mapping[str, Any]],
        served: Sequence[Mapping[str, Any]],
        title: str = "",
    ) -> Any:
        """A matplotlib figure of N examples with the prediction for each.

        Args:
          images: see `drawing.samples.draw_example`.
          targets: of each by name; empty if unknown.
          served: what `serve` returns for each.
          title: above the picture.
        """
        from jaxconv.drawing.samples import captioned_grid

        captions = [
            "\n".join([*_captions(said), *(f"is: {line}" for line in _captions(true))])
            for true, said in zip(targets, served, strict=True)
        ]
        return captioned_grid(images, captions, title)

    def in_file(
        self, served: Mapping[str, np.ndarray], transform: Transform, size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """What `serve` returns for an image, in the pixels of its file; by `served_moves`.

        Args:
          served: of the image as the network saw it.
          transform: to the pixels of the file.
          size: (height, width) of the file.
        """
        return move(dict(served), self.served_moves, transform, size)

    def images(self, served: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Images that `predict --out` writes of one example besides its picture, by name.

        Args:
          served: what `serve` returns for it, in the pixels of its file.
        """
        return {}

    def worst(self, outcomes: Any, most: int) -> np.ndarray:
        """Rows of the `most` examples that are predicted worst, the worst first: by their loss."""
        return np.argsort(-outcomes.values["loss"], kind="stable")[:most]

    @property
    def pictures(self) -> dict[str, Callable[..., Any]]:
        """Pictures of an evaluated set that `jaxconv look` draws, by name.

        Each is a function (evaluation, shown, most, title) -> figure, where `shown` maps an
        example's number to its image.
        """
        return {}

    def sections(self) -> Sequence[tuple[str, Callable[[Any], list[Any]]]]:
        """Sections of a run's page, after the curves: (title, function of the run) pairs.

        See report/sections.py.
        """
        return (("Predictions", _prediction_section),)

    def rows(self, outcomes: Any, who: str) -> list[tuple[str, str]]:
        """Rows (name, text) that `evaluate` adds to the figures; `who` names the predictor."""
        return []

    def remarks(
        self, figures: Mapping[str, float], between: Mapping[str, tuple[float, float]]
    ) -> list[str]:
        """Sentences on anything surprising in the intervals of the figures."""
        return []

    def caption(self, outcomes: Any) -> str:
        """Text about the outcomes, after the caption of the page's table."""
        return ""

    def lines(self, outcomes: Any) -> list[str]:
        """The table of `evaluate --per_class`; empty if there is none."""
        return []

    @property
    def writers(self) -> dict[str, tuple[tuple[str, ...], Callable[[Any, Any], None]]]:
        """Files that `evaluate` writes, by option: suffixes, and (path, evaluation) -> None."""
        from jaxconv.tasks.files import write_values

        return {"predictions": ((".npz", ".csv"), write_values)}


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of every example of a set.

    Attributes:
      values: [N, ...] by name.
      index: [N] the examples' positions in their source; unreadable ones are missing.
    """

    values: Mapping[str, np.ndarray]
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


def means(
    sums: Mapping[str, np.ndarray], examples: int, kept: Mapping[str, np.ndarray] | None = None
) -> dict[str, float]:
    """The figures of a task whose figures are means, see `Task.finish`."""
    return {name: float(value / examples) for name, value in sums.items()}


def masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The sum over the examples [B, ...] whose mask is not 0."""
    # `where` and not a product: the value of a padding example may be infinite.
    mask = mask.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.sum(jnp.where(mask > 0, values, 0), axis=0)


def bootstrap_means(
    values: Mapping[str, np.ndarray], resamples: int, seed: int = 0, confidence: float = CONFIDENCE
) -> dict[str, tuple[float, float]]:
    """(low, high) of the mean of each of the values [N], by the bootstrap.

    They are percentiles of the means of `resamples` resamples of the examples (Efron and Tibshirani
    1993, chapter 13).
    """
    single = {name: value for name, value in values.items() if np.ndim(value) == 1}
    if not single:
        return {}
    columns, random = np.column_stack([*single.values()]), np.random.default_rng(seed)
    count = len(columns)
    means = np.stack(
        [columns[random.integers(count, size=count)].mean(axis=0) for _ in range(resamples)]
    )
    tails = 100 * np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    found = np.percentile(means, tails, axis=0)
    return {name: (float(found[0, n]), float(found[1, n])) for n, name in enumerate(single)}


def _finite_mean(x: jax.Array) -> jax.Array:
    left = jnp.all(jnp.isfinite(x), axis=tuple(range(2, x.ndim)), keepdims=True)
    return jnp.sum(jnp.where(left, x, 0), axis=0) / jnp.sum(left.astype(x.dtype), axis=0)


def _short_numbers(value: Any, most: int = 8) -> str:
    numbers = [f"{number:.4g}" for number in np.asarray(value, np.float64).reshape(-1)]
    return ", ".join(numbers[:most]) + (" ..." if len(numbers) > most else "")


def _captions(values: Mapping[str, Any]) -> list[str]:
    return [f"{name} {_short_numbers(value, 3)}" for name, value in values.items()]


def _prediction_section(run: Any) -> list[Any]:
    from jaxconv.drawing.parts import Text, picture

    figure, count = run.predictions_drawn()
    alt = (
        f"{count} test examples, each with its targets and what the network says of it, 1 to "
        f"{count}."
    )
    return [Text("Examples evenly spread over the test set."), picture(figure, alt)]
