"""What the engine asks of a task. Whoever writes a task derives from `Task`.

    figures, training   what it measures, while evaluating and while training
    needs               the targets of an example that it learns from, beside `image`
    model, loss, values the network; what training makes smaller; what is measured of an example
    sums, keep, finish  what evaluation adds up on the devices, what it keeps of each example for
                        the host, and the figures that come of both
    serve, describe     what `export` and `predict` give a program and a person
    draw, pictures, sections, tables   what `look`, `report` and `evaluate` show

A task with one number an example needs `needs`, `figures`, `loss` and `values` alone; see
experiments/own_task.py. Device functions are pure: they run under jit, pmap and vmap.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.interface import Target, read_targets
from jaxconv.errors import UserError

Batch = Mapping[str, jax.Array]

# Of intervals.
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure that a task measures.

    Attributes:
      key: its name in results, and with `eval/` or `train/` before it in metrics.jsonl.
      title: for tables and curves.
      unit: such as `nats` or `degrees`; empty for none.
      higher: whether more is better.
      share: whether it is a share from 0 to 1, which is shown in per cent.
      panel: title of the curve; empty where it has none.
      name: the title where there is room for more; empty for the same.
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
        """The title where there is room for more."""
        return self.name or self.title

    def show(self, value: float | None) -> str:
        """The value as text, without the unit; `-` for None."""
        if value is None:
            return "-"
        return f"{100 * value:.2f} %" if self.share else f"{value:.4f}"


class Task:
    """A task on the data of a run; the base of all.

    Args:
      config: the whole config.
      description: of the data, see `interface.describe`.

    Attributes:
      figures: what it measures; by the first go the best checkpoints, `plateau` and sweeps.
      training: keys of `figures` that `training_values` measures while training.
      needs: targets of an example that it reads.
      settings: `config.task.kwargs` that it has, and their defaults.
      keeps: whether `finish` needs what `keep` keeps of each example, while training too.
      views: what of an image evaluation may look at, see evaluation/views.py. With more than
        `center`, `kept_outputs` names the network's outputs among what `keep` keeps.
    """

    figures: ClassVar[tuple[Figure, ...]] = (Figure("loss", "loss", panel="Loss"),)
    training: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[Mapping[str, Any]] = {}
    keeps: ClassVar[bool] = False
    views: ClassVar[tuple[str, ...]] = ("center",)
    kept_outputs: ClassVar[str] = ""

    def __init__(self, config: Any, description: dict[str, Any]):
        self.config, self.description = config, description
        self.kwargs = {**self.settings, **config.task.kwargs}

    # What the config and the data must be, and the network.

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raise UserError for settings of the config that the task has no use for, before the data
        is read: a task has a loss of its own, and its own figures.
        """
        given = {"loss.name": config.loss.name != "softmax", "eval.metrics": config.eval.metrics}
        given |= {f"loss.{key}": config.loss[key] for key in ("threshold", "label_smoothing")}
        for key, value in given.items():
            if value:
                raise UserError(
                    f"config.{key}: the task {config.task.name} has no use for it; leave it as it "
                    "is by default"
                )

    def check(self) -> None:
        """Raise UserError unless the examples have the targets that the task needs, and the config
        asks for nothing that it has not.
        """
        has = self.targets
        for name in self.needs:
            if name not in has:
                raise UserError(
                    f"config.task.name is {self.config.task.name!r}, which needs the target "
                    f"{name!r} of each example; {self.config.data.source} has {', '.join(has)}",
                    exit_code=1,
                )
        for key in ("mixup", "cutmix"):
            if self.config.augment[key] and type(self).mix is Task.mix:
                raise UserError(
                    f"config.augment.{key} is {self.config.augment[key]}; the task "
                    f"{self.config.task.name} cannot mix its targets: leave it at 0"
                )

    @property
    def targets(self) -> dict[str, Target]:
        """The targets of an example, by name."""
        return read_targets(self.description)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty where the task has none."""
        return tuple(self.description["class_names"])

    @property
    def outputs(self) -> int:
        """Outputs of the network's last layer, for `create_model`."""
        return len(self.class_names)

    def model(self, axis_name: str | None = None) -> Any:
        """The Linen module, called as (images, train=): by default the network of `config.model`
        with `outputs` outputs. What it returns may be any pytree with the examples first.
        """
        from jaxconv.models.configured import build_model

        return build_model(self.config.model, self.outputs, axis_name)

    # Training, on the devices.

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """What training makes smaller, [B] float32."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def make_loss(self, swept: Mapping[str, jax.Array]) -> Callable[[Any, Batch], jax.Array]:
        """`loss`, with settings of the config that an ensemble differs in, by name and traced."""
        return self.loss

    def training_values(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """What is measured of a training batch beside the loss, [B] by the keys of `training`."""
        values = self.values(outputs, batch) if self.training else {}
        return {key: values[key] for key in self.training}

    def mix(
        self, batch: Batch, opposite: Callable[[jax.Array], jax.Array], share: jax.Array
    ) -> dict[str, jax.Array]:
        """Targets of a batch whose images were mixed, by mixup or cutmix.

        Args:
          batch: before it was mixed.
          opposite: values [B, ...] -> those of the examples that each was mixed with.
          share: of the image that each example keeps.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot mix its targets")

    # Evaluation, on the devices.

    def values(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """What is measured of each example, [B] float32 by key; their means are the figures."""
        return {}

    def eval_loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The loss that evaluation measures, [B]."""
        return self.loss(outputs, batch)

    def measured(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`loss` and `values` of each example."""
        return {"loss": self.eval_loss(outputs, batch), **self.values(outputs, batch)}

    def sums(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """What is added up over all examples, devices and processes; of any shape, `loss` among
        them. The batch has `mask` [B], 0 for examples that only fill it up.
        """
        values = self.measured(outputs, batch)
        return {name: masked_sum(value, batch["mask"]) for name, value in values.items()}

    def keep(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """What the host is to have of each example, [B, ...] by name."""
        return self.measured(outputs, batch)

    def combine(self, outputs: Any) -> Any:
        """One prediction from several, of an ensemble's members or of views: [M, B, ...] -> [B,
        ...]. By default the mean of those in which all numbers are finite.
        """
        return jax.tree.map(_finite_mean, outputs)

    # Evaluation, on the host.

    def finish(
        self,
        sums: Mapping[str, np.ndarray],
        examples: int,
        kept: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, float]:
        """The figures by key, `loss` among them.

        Args:
          sums: over all examples, float64.
          examples: how many.
          kept: what `keep` kept of each example, in order, where `keeps` says so.
        """
        return means(sums, examples, kept)

    def outcomes(self, kept: Mapping[str, np.ndarray], index: np.ndarray) -> Any:
        """What a network makes of every example of a set, to be asked for more than the figures.

        Args:
          kept: what `keep` kept of each example, [N, ...].
          index: [N] the examples' places in their source.
        """
        return Measured(
            {name: np.asarray(value, np.float64) for name, value in kept.items()}, index
        )

    def join_passes(self, passes: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """What was kept of each example in several passes over a set, as if in one."""
        (one,) = passes
        return one

    def more_figures(self, outcomes: Any) -> dict[str, float]:
        """Figures by key that the outcomes tell and sums do not."""
        return {}

    def averaged(self, each: Sequence[Any]) -> Any:
        """The outcomes of the averaged prediction of several networks; None where their outcomes do
        not tell it.
        """
        return None

    def joint_figures(self, outcomes: Any) -> dict[str, float]:
        """The figures by key of an averaged prediction."""
        return {}

    def truth(self, outcomes: Any) -> np.ndarray:
        """What is known of each example, [N], by which outcomes of other examples are told."""
        return np.zeros(len(outcomes))

    def truth_in_words(self, outcomes: Any, place: int) -> str:
        """The same of one example, for messages."""
        return str(self.truth(outcomes)[place])

    def intervals(self, outcomes: Any, resamples: int) -> dict[str, tuple[float, float]]:
        """(low, high) of figures by key, by so many bootstrap resamples of the examples."""
        return bootstrap_means(outcomes.values, resamples)

    @classmethod
    def figure(cls, key: str) -> Figure:
        """The figure of a key, also of `eval/KEY` and of an ensemble's; of one's own metric a
        plain one.
        """
        key = key.removeprefix("eval/").removeprefix("train/").partition("/")[0]
        key = key.removeprefix("ensemble_")
        plain = Figure(key, key, higher="loss" not in key)
        return next((figure for figure in cls.figures if figure.key == key), plain)

    @classmethod
    def metric(cls, name: str) -> str:
        """The name in metrics.jsonl of `config.checkpoint.metric` or `schedule.metric`: where it is
        empty, that of the first figure.
        """
        return name or f"eval/{cls.figures[0].key}"

    # For programs and people.

    def serve(self, outputs: Any) -> dict[str, jax.Array]:
        """What an exported program returns, [B, ...] by name."""
        return {"outputs": outputs} if not isinstance(outputs, dict) else outputs

    @classmethod
    def describe(
        cls, served: Mapping[str, np.ndarray], description: Mapping[str, Any], top: int
    ) -> tuple[list[str], dict[str, Any]]:
        """What `predict` says of one example: lines for people, and an object for JSON.

        Args:
          served: what `serve` returns of it, [...] by name.
          description: of the network, see weights/export.py.
          top: answers to give at most, where there are several.
        """
        said = {name: np.asarray(value).tolist() for name, value in served.items()}
        lines = [f"  {name}: {_short_numbers(value)}" for name, value in served.items()]
        return lines, said

    def caption_of(self, targets: Mapping[str, Any]) -> str:
        """What an example is, in one line or several, for a picture of it."""
        return "\n".join(_captions({name: targets[name] for name in self.needs}))

    def draw(
        self,
        images: Sequence[Any],
        targets: Sequence[Mapping[str, Any]],
        served: Sequence[Mapping[str, Any]],
        title: str = "",
    ) -> Any:
        """A matplotlib figure of N examples with what the network says of each.

        Args:
          images: see `drawing.samples.draw_example`.
          targets: of each by name; empty where none are known.
          served: what `serve` returns of each.
          title: above the picture.
        """
        from jaxconv.drawing.samples import captioned_grid

        captions = [
            "\n".join([*_captions(said), *(f"is: {line}" for line in _captions(true))])
            for true, said in zip(targets, served, strict=True)
        ]
        return captioned_grid(images, captions, title)

    @property
    def pictures(self) -> dict[str, Callable[..., Any]]:
        """Pictures of an evaluated set that `jaxconv look` draws, by name: (evaluation, shown,
        most, title) -> figure, where `shown` makes of an example's number its image.
        """
        return {}

    def sections(self) -> Sequence[tuple[str, Callable[[Any], list[Any]]]]:
        """Its parts of a run's page, after the curves: titles, and functions of the run, see
        report/sections.py.
        """
        return (("Predictions", _prediction_section),)

    def rows(self, outcomes: Any, who: str) -> list[tuple[str, str]]:
        """What `evaluate` says beside the figures, as names and texts; `who` says whose it is."""
        return []

    def remarks(
        self, figures: Mapping[str, float], between: Mapping[str, tuple[float, float]]
    ) -> list[str]:
        """Sentences on what may surprise in the intervals of the figures."""
        return []

    def caption(self, outcomes: Any) -> str:
        """What else the page says of the outcomes, after its table's caption."""
        return ""

    def lines(self, outcomes: Any) -> list[str]:
        """The table of `evaluate --per_class`; empty where there is none."""
        return []

    @property
    def writers(self) -> dict[str, tuple[tuple[str, ...], Callable[[Any, Any], None]]]:
        """Files that `evaluate` writes, by option: their suffixes, and (path, evaluation) ->
        None.
        """
        from jaxconv.tasks.files import write_values

        return {"predictions": ((".npz", ".csv"), write_values)}


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of every example of a set.

    Attributes:
      values: [N, ...] by name.
      index: [N] the examples' places in their source; those that could not be read are missing.
    """

    values: Mapping[str, np.ndarray]
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


def means(
    sums: Mapping[str, np.ndarray], examples: int, kept: Mapping[str, np.ndarray] | None = None
) -> dict[str, float]:
    """The figures of a task that measures means, see `Task.finish`."""
    return {name: float(value / examples) for name, value in sums.items()}


def masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The sum over the examples [B, ...] that count; `where`, since a filler's value may be
    infinite.
    """
    mask = mask.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.sum(jnp.where(mask > 0, values, 0), axis=0)


def bootstrap_means(
    values: Mapping[str, np.ndarray], resamples: int, seed: int = 0, confidence: float = CONFIDENCE
) -> dict[str, tuple[float, float]]:
    """(low, high) of the mean of each of the values [N], by the bootstrap: percentiles of the means
    of so many resamples of the examples (Efron and Tibshirani 1993, chapter 13).
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
    left = jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
    weight = left.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.sum(jnp.where(weight > 0, x, 0), axis=0) / jnp.sum(weight)


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
