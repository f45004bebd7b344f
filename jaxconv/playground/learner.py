"""The network that is trained live, and its compiled functions.

It uses jaxconv's own training: `create_model("chain")`, `make_optimizer`, `make_train_step`. The
learning rate is an argument of the compiled step, so changing it compiles nothing; changing any
other setting builds another network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.config import default_config
from jaxconv.data.augment import make_preprocess
from jaxconv.errors import UserError
from jaxconv.models import abstract_variables, create_model
from jaxconv.playground.shown import NetworkView, make_view
from jaxconv.tasks.classification.losses import correct
from jaxconv.train.optim import make_optimizer
from jaxconv.train.state import TrainState, create_state
from jaxconv.train.step import make_train_step

# Of each setting: the smallest and the largest value of its numbers, and the most numbers.
LIMITS = {
    "filters": (1, 64, 4),
    "filter_size": (1, 11, 1),
    "pool_window": (1, 5, 1),
    "pool_stride": (1, 5, 1),
    "neurons": (1, 256, 3),
    "batch_size": (1, 256, 1),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The lecture's hyperparameters of the network to train, see `models/chain.py`; its batch size.

    Raises UserError for a value outside `LIMITS`.
    """

    filters: tuple[int, ...] = (8, 16)
    filter_size: int = 3
    pool_window: int = 2
    pool_stride: int = 2
    neurons: tuple[int, ...] = (32,)
    rounding: str = "floor"
    batch_size: int = 50

    def __post_init__(self) -> None:
        for name, (least, most, count) in LIMITS.items():
            value, words = getattr(self, name), name.replace("_", " ")
            numbers = value if isinstance(value, tuple) else (value,)
            if isinstance(value, tuple) is not (name in ("filters", "neurons")):
                raise UserError(
                    f"{words}: {value!r} is not "
                    f"{'a list of numbers' if name in ('filters', 'neurons') else 'one number'}"
                )
            for number in numbers:
                if type(number) is not int or not least <= number <= most:
                    raise UserError(
                        f"{words}: {number!r} is not a whole number from {least} to {most}"
                    )
            if len(numbers) > count or (name == "filters" and not numbers):
                raise UserError(
                    f"{words}: {len(numbers)} numbers; give "
                    f"{'1 to' if name == 'filters' else 'up to'} {count}, one per layer"
                )
        if self.filter_size % 2 == 0:
            size = self.filter_size
            raise UserError(
                f"filter size: keeping the size needs padding ({size} - 1)/2 = {(size - 1) / 2}, "
                "which is not a whole number: choose an odd size"
            )

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of `create_model`."""
        return {
            key: value for key, value in dataclasses.asdict(self).items() if key != "batch_size"
        }


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network and its compiled functions.

    Attributes:
      settings: those it was built with.
      shown: its view for the page.
      init: key -> state.
      train: (state, {"image": [B, H, W, C] uint8, "label": [B] int32}, key, learning rate) ->
        (state, loss).
      test: (variables, pictures [N, H, W, C] uint8, labels [N]) -> [N], 1 where it is correct.
    """

    settings: Settings
    shown: NetworkView
    init: Callable[[jax.Array], TrainState]
    train: Callable[..., tuple[TrainState, jax.Array]]
    test: Callable[..., jax.Array]


def key_of(seed: int) -> jax.Array:
    """Return an `rbg` key: its programs compile in a quarter of the time, and the user waits."""
    return jax.random.key(seed, impl="rbg")


def _model(settings: Settings, classes: int) -> Any:
    return create_model("chain", classes, **settings.network)


def check_fits(settings: Settings, shape: tuple[int, ...]) -> None:
    """Raise UserError, with the arithmetic, unless every layer fits pictures of shape (H, W, C)."""
    try:
        abstract_variables(_model(settings, 2), (1, *shape))
    except (ValueError, ArithmeticError) as error:
        raise UserError(" ".join(str(error).split())) from error


def build(
    settings: Settings,
    config: Any,
    shape: tuple[int, ...],
    class_names: tuple[str, ...],
    tests: int,
) -> Learner:
    """Compile everything needed to train and show a network.

    Args:
      settings: of the network and its batches.
      config: how pictures are normalised.
      shape: of a picture, (H, W, C).
      class_names: one name per class.
      tests: number of pictures per call of `test`.
    """
    model = _model(settings, len(class_names))
    preprocess, optimizer_settings = make_preprocess(config), default_config().optimizer
    variables = abstract_variables(model, (1, *shape))
    optimizer = make_optimizer(optimizer_settings, variables["params"])

    def init(key: jax.Array) -> TrainState:
        return create_state(model, optimizer, key, jnp.zeros((1, *shape)))

    def train(
        state: TrainState, batch: dict[str, jax.Array], key: jax.Array, rate: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        step = make_train_step(
            model,
            optimizer,
            augment=lambda _, batch: preprocess(batch),
            learning_rate=lambda _: rate,
        )
        state, metrics = step(state, batch, key)
        return state, metrics["loss"]

    def test(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return correct(
            model.apply(variables, preprocess({"image": images})["image"], train=False), labels
        )

    key = jax.eval_shape(key_of, 0)
    state = jax.eval_shape(init, key)

    def batch(count: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        return jax.ShapeDtypeStruct((count, *shape), jnp.uint8), jax.ShapeDtypeStruct(
            (count,), jnp.int32
        )

    images, labels = batch(settings.batch_size)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    return Learner(
        settings,
        make_view(model, preprocess, variables, shape, class_names),
        jax.jit(init).lower(key).compile(),
        jax.jit(train).lower(state, {"image": images, "label": labels}, key, rate).compile(),
        jax.jit(test).lower(variables, *batch(tests)).compile(),
    )
