"""Classification by the nearest neighbours of features, which says how good they are as they are.

An example has the class for which the k training examples with the most similar features vote, each
with exp(cosine similarity / 0.07) votes (Wu et al. 2018, arXiv:1805.01978, section 3.4). Features
are what a network gives to its last layer.
"""

import dataclasses
import functools
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.interface import Source, describe, read_targets
from jaxconv.data.loading import make_loader, take
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.files import expand
from jaxconv.models.configured import build_model
from jaxconv.tasks import needs_of
from jaxconv.tasks.task import Batch, exact_interval
from jaxconv.train.build import build_network
from jaxconv.train.evaluate import evaluate_each
from jaxconv.train.initial import Read, fitted_weights, read_folder
from jaxconv.train.other_data import Overrides, reading
from jaxconv.train.parallel import in_32_bits, make_parallel
from jaxconv.train.restore import restore_run
from jaxconv.train.step import make_eval_step
from jaxconv.train.transforms import make_preprocessing
from jaxconv.train.workdir import opened_config, saved_data

TEMPERATURE = 0.07
# Examples that are compared with all training examples at a time.
_AT_A_TIME = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """What the nearest neighbours say of a set.

    Attributes:
      k: how many vote.
      width: number of features.
      known: number of training examples.
      right: [N] bool, whether each example of the set has its class.
    """

    k: int
    width: int
    known: int
    right: np.ndarray

    @property
    def top1(self) -> float:
        """The share of the examples that have their class."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of that share."""
        return exact_interval(self.right)

    def record(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "k": self.k,
            "features": self.width,
            "train_examples": self.known,
            "examples": len(self.right),
            "top1": self.top1,
            "intervals": {"top1": self.interval},
        }


def vote(
    known: np.ndarray, labels: np.ndarray, asked: np.ndarray, k: int, classes: int
) -> np.ndarray:
    """The class [M] int32 of each of the features [M, C] by its k nearest of [N, C].

    Args:
      known, labels: [N, C] and [N], of the training examples.
      asked: [M, C].
      k: at most N.
      classes: number of classes.
    """
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (known, asked)]
    known_unit, label = jnp.asarray(unit[0], jnp.float32), jnp.asarray(labels, jnp.int32)

    @jax.jit
    def of(part: jax.Array) -> jax.Array:
        cosine, nearest = jax.lax.top_k(jnp.matmul(part, known_unit.T, precision="highest"), k)
        # The largest votes are 1: exp(1 / 0.07) of them would leave float32 little to tell by.
        weight = jnp.exp((cosine - cosine[:, :1]) / TEMPERATURE)
        votes = jnp.einsum("mk,mkc->mc", weight, jax.nn.one_hot(label[nearest], classes))
        return jnp.argmax(votes, axis=1)

    parts = range(0, len(asked), _AT_A_TIME)
    return np.concatenate([np.asarray(of(unit[1][i : i + _AT_A_TIME])) for i in parts])


class _Features:
    """What an evaluation step keeps of each example; the methods are those of `Task`."""

    def sums(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Nothing is summed."""
        return {}

    def keep(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """`features` [B, C] and `label` [B]."""
        features = outputs.reshape(outputs.shape[0], -1).astype(jnp.float32)
        return {"features": features, "label": batch["label"]}


def _features(
    config: Any, description: dict[str, Any], variables: Any, source: Source
) -> tuple[np.ndarray, np.ndarray]:
    """The features [N, C] and labels [N] of the examples of a source."""
    parallel = make_parallel(config.parallel, jax.local_devices())
    model = build_model(config.model, 0, parallel.axis_name)
    preprocess = make_preprocessing(config, description)
    step = make_eval_step(model, preprocess=preprocess, measure=_Features(), each=True)

    def of_batch(variables: Any, data: Any, batch: dict[str, jax.Array]) -> Any:
        return step(variables, take(data, batch))

    compiled = parallel.compile_eval(of_batch, jax.eval_shape(lambda: variables), each=True)
    placed = parallel.to_steps(variables)
    loader = make_loader(source, parallel, config.data)
    finish = lambda sums, examples, kept: {}  # noqa: E731
    size = config.eval.batch_size
    _, kept = evaluate_each(compiled, parallel, placed, loader, size, finish=finish)
    return kept["features"], kept["label"]


def _measure(
    config: Any, description: dict[str, Any], variables: Any, sources: tuple[Source, Source], k: int
) -> Neighbours:
    if k > len(sources[0]):
        raise UserError(f"--k={k}: there are only {len(sources[0])} training examples")
    of = functools.partial(_features, config, description, variables)
    (known, labels), (asked, truth) = of(sources[0]), of(sources[1])
    said = vote(known, labels, asked, min(k, len(known)), len(description["class_names"]))
    return Neighbours(k, known.shape[1], len(known), said == truth)


@in_32_bits
def of_run(workdir: str, k: int, overrides: Overrides = ()) -> Neighbours:
    """The nearest neighbours by the features of a run's last checkpoint.

    `overrides` are those of `evaluate_run`, such as `data.source=folder:DIR`.

    Raises:
      UserError: the run or the data cannot be read, or the task has no labels.
    """
    folder = expand(workdir)
    config, description = opened_config(folder, overrides), saved_data(folder)
    _check(config, description)
    network = build_network(config, description)
    if network.members:
        raise UserError(f"--workdir={workdir}: holds an ensemble; neighbours takes one network")
    with reading(config):
        sources = _open(config, description)
    state, _ = restore_run(folder, "latest", network.abstract, config=config)
    return _measure(config, description, state.variables, sources, k)


@in_32_bits
def of_weights(config: Any, k: int, read: Read = read_folder) -> Neighbours:
    """The same by the weights of `config.model.init_from`, which `read` reads.

    Raises:
      UserError: the weights or the data cannot be read, or do not fit the network.
    """
    sources = _open(config)
    description = describe(sources[0])
    _check(config, description)
    network = build_network(config, description)
    place, classes = config.model.init_from, network.task.outputs
    fitted, _ = fitted_weights(place, network.abstract, classes, read)
    flat: dict[Any, Any] = flax.traverse_util.flatten_dict(fitted)
    # A new last layer is only a shape, and features do not need it.
    known = {path: x for path, x in flat.items() if not isinstance(x, jax.ShapeDtypeStruct)}
    return _measure(config, description, flax.traverse_util.unflatten_dict(known), sources, k)


def _open(config: Any, like: dict[str, Any] | None = None) -> tuple[Source, Source]:
    """Both splits, read as evaluation reads them; by default like the training split."""
    train = open_source(config.data, config.data.train_split, like=like, needs=needs_of(config))
    return train, open_source(config.data, config.data.eval_split, like=like or describe(train))


def _check(config: Any, description: dict[str, Any]) -> None:
    if "label" not in read_targets(description):
        raise UserError(
            f"neighbours: needs a label for each example; {config.data.source} has "
            f"{', '.join(read_targets(description))}"
        )
