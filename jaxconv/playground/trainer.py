"""The live trainer: a chain network that learns in a thread and can be paused, stepped and rebuilt.

The thread compiles, reads the pictures or trains, whichever is next; it checks for new commands
between two steps.
"""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from jaxconv.data import xo
from jaxconv.data.interface import Arrays, describe
from jaxconv.data.layout import to_bytes
from jaxconv.data.loading import train_indices
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError, in_words
from jaxconv.playground.learner import Learner, Settings, build, check_fits, key_of
from jaxconv.playground.shown import NetworkView
from jaxconv.train.state import TrainState

T = TypeVar("T")
log = logging.getLogger(__name__)

# Test images that the accuracy is measured on, and how many of them are new each time.
WINDOW, _NEW = 200, 50
# Seconds between two reports of a running training, and the most points of its curves.
_EVERY, _POINTS = 0.2, 400
# Numbers of X's and O's drawn for training and testing.
_DRAWN = {"train_examples": 3000, "test_examples": 1000}
_MOST_RATE = 10.0


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """A report during training.

    Attributes:
      step: steps done.
      loss: mean over the steps since the previous report.
      accuracy: on the last `WINDOW` test images; NaN before any.
    """

    step: int
    loss: float
    accuracy: float


class Trainer:
    """Trains in its own thread; every method may be called from any other thread.

    Args:
      config: names the data to train on and its normalisation.
      shape: of the pictures, (H, W, C).
      class_names: one name per class.
      changed: called without arguments, in the trainer's thread, whenever something visible has
        changed.

    Attributes:
      status: `waiting` for its first command, `reading` the pictures, `compiling`, `paused`,
        `training`, or `stopped` by an error.
      message: what went wrong; empty if nothing did.
      points: the reports so far; a long training keeps only some of the older ones.
      step: steps done.
      parameters: number of parameters of the network.
      seconds: duration of the last compilation.
    """

    def __init__(
        self,
        config: Any,
        shape: tuple[int, ...],
        class_names: tuple[str, ...],
        changed: Callable[[], None],
    ):
        self.config, self.shape, self.class_names, self._changed = (
            config,
            shape,
            class_names,
            changed,
        )
        self.status, self.message, self.points, self.step = "waiting", "", [], 0
        self.parameters, self.seconds = 0, 0.0
        self._wake = threading.Condition()
        self._closed = self._wanted = self._running = False
        self._steps, self._holders, self._seed, self._rate = 0, 0, 0, 0.005
        self._settings, self._variation = Settings(), variation_of(config)
        self._built: Learner | None = None
        self._state: TrainState | None = None
        self._begun: tuple[Settings, int] | None = None
        self._data: tuple[xo.Variation, Arrays, Arrays] | None = None
        self._losses: list[float] = []
        self._answers: collections.deque[bool] = collections.deque(maxlen=WINDOW)
        self._tested, self._reported = 0, 0.0
        self._thread = threading.Thread(target=self._work, name="trainer", daemon=True)
        self._thread.start()

    @property
    def settings(self) -> Settings:
        """The settings requested last."""
        return self._settings

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self._rate

    @property
    def variation(self) -> xo.Variation:
        """The variation of the X's and O's to train on."""
        return self._variation

    @property
    def network(self) -> tuple[NetworkView, Any] | None:
        """The current network and its variables; None before there is one."""
        with self._wake:
            return (
                (self._built.shown, self._state.variables) if self._built and self._state else None
            )

    def start(self) -> None:
        """Train until paused."""
        self._command(running=True, steps=0)

    def pause(self) -> None:
        """Stop after the current step."""
        self._command(running=False, steps=0)

    def do_step(self) -> None:
        """Do exactly one more step, then pause."""
        self._command(running=False, steps=1)

    def set(
        self,
        settings: Settings | None = None,
        rate: float | None = None,
        variation: xo.Variation | None = None,
    ) -> None:
        """Change what is given.

        New settings start a new network; a new rate or variation applies from the next step.

        Raises:
          UserError: a value is out of range, or a layer does not fit; the message shows the
            arithmetic.
        """
        if rate is not None and not 0 <= rate <= _MOST_RATE:
            raise UserError(f"the learning rate is {rate}; it must be between 0 and {_MOST_RATE:g}")
        if settings is not None:
            check_fits(settings, self.shape)
        with self._wake:
            self._settings = settings or self._settings
            self._rate = self._rate if rate is None else rate
            self._variation = variation or self._variation
            self._wanted = True
            self._wake.notify()

    def hold(self) -> None:
        """Start no step until `release`, so that drawing has the machine to itself."""
        with self._wake:
            self._holders += 1

    def release(self) -> None:
        """End one `hold`."""
        with self._wake:
            self._holders -= 1
            self._wake.notify()

    def begin(self) -> None:
        """Start over with new initial weights."""
        with self._wake:
            self._seed += 1
            self._wanted = True
            self._wake.notify()

    def close(self) -> None:
        """End the thread after the current step."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _command(self, running: bool, steps: int) -> None:
        with self._wake:
            self._wanted, self._running, self._steps = True, running, steps
            self._wake.notify()

    def _work(self) -> None:
        """The thread's loop."""
        while True:
            with self._wake:
                self._wake.wait_for(
                    lambda: (
                        self._closed
                        or (self._wanted and not self._holders and self._todo() is not None)
                    )
                )
                if self._closed:
                    return
                todo = made(self._todo())
            try:
                todo()
            except UserError as error:
                self._stop(str(error))
            except Exception as error:  # else the thread would die and the page wait forever
                log.error("the training stopped: %s", in_words(error))
                log.debug("traceback", exc_info=True)
                self._stop(in_words(error))

    def _stop(self, why: str) -> None:
        with self._wake:
            self._wanted = self._running = False
            self._steps = 0
            self._say("stopped", why)

    def _say(self, status: str, message: str = "") -> None:
        # In this order, so that a reader of the status finds its message.
        self.message, self.status = message, status
        self._changed()

    def _todo(self) -> Callable[[], None] | None:
        """The next thing to do; None if there is nothing."""
        if self._built is None or self._built.settings != self._settings:
            return self._build
        if self._begun != (self._settings, self._seed):
            return self._init
        if not (self._running or self._steps):
            return self._rest if self.status not in ("paused", "stopped") else None
        if self._data is None or self._data[0] != self._variation:
            return self._read
        return self._train

    def _rest(self) -> None:
        if self._losses:
            self._report()
        self._say("paused")

    def _read(self) -> None:
        self._say("reading")
        variation = self._variation
        train, test = read(self.config, self.shape, variation)
        self._data, self._tested = (variation, train, test), 0
        self._answers.clear()

    def _build(self) -> None:
        self._say("compiling")
        settings, began = self._settings, time.perf_counter()
        built = build(settings, self.config, self.shape, self.class_names, _NEW)
        self.seconds = time.perf_counter() - began
        with self._wake:
            # Set together, because a state fits only its own network.
            self._built, self._state, self._begun = (
                built,
                built.init(key_of(self._seed)),
                (settings, self._seed),
            )
        self._clear()

    def _init(self) -> None:
        seed = self._seed
        with self._wake:
            built = made(self._built)
            self._state, self._begun = built.init(key_of(seed)), (built.settings, seed)
        self._clear()

    def _clear(self) -> None:
        self.points, self.step = [], 0
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(made(self._state).params))
        self._losses, self._tested = [], 0
        self._answers.clear()
        self._say("paused")

    def _train(self) -> None:
        _, train, _ = made(self._data)
        built = made(self._built)
        if self.status != "training" and self._running:
            self._say("training")
        index = train_indices(self._seed, self.step, built.settings.batch_size, len(train))
        batch = {"image": train.images[index], "label": train.labels[index]}
        state, loss = built.train(self._state, batch, key_of(self._seed), np.float32(self._rate))
        loss = float(loss)
        with self._wake:
            self._state = state
            self.step += 1
            self._steps = max(0, self._steps - 1)
        self._losses.append(loss)
        if not np.isfinite(loss):
            self._report()
            raise UserError(
                f"the loss is {loss} after step {self.step}: the learning rate is too high; lower "
                "it and reset"
            )
        if not self._running or time.perf_counter() - self._reported >= _EVERY:
            self._report()

    def _report(self) -> None:
        """Test on some more images, and add a point to the curves."""
        _, _, test = made(self._data)
        # Shuffled, because a folder lists one class after the other.
        index = train_indices(0, self._tested, _NEW, len(test))
        self._answers.extend(
            np.asarray(
                made(self._built).test(
                    made(self._state).variables, test.images[index], test.labels[index]
                )
            )
            > 0
        )
        self._tested += 1
        points = [
            *self.points,
            CurvePoint(self.step, float(np.mean(self._losses)), float(np.mean(self._answers))),
        ]
        # The newest point stays when older ones are thinned out.
        self.points = points if len(points) <= _POINTS else [*points[:-1:2], points[-1]]
        self._losses, self._reported = [], time.perf_counter()
        self._changed()


def variation_of(config: Any) -> xo.Variation:
    """The variation of a config's X's and O's."""
    return xo.Variation(
        **{field.name: config.data.xo[field.name] for field in dataclasses.fields(xo.Variation)}
    )


def read(config: Any, shape: tuple[int, ...], variation: xo.Variation) -> tuple[Arrays, Arrays]:
    """The pictures to train and test on: X's and O's of this variation, or the config's source.

    Raises:
      UserError: they cannot be read, or exceed the config's memory limit.
    """
    data = config.data
    if data.source == "xo":
        drawn = {
            "size": shape[0],
            "channels": shape[-1],
            "seed": data.xo.seed,
            **_DRAWN,
            **dataclasses.asdict(variation),
        }
        return xo.draw_split("train", **drawn), xo.draw_split("test", **drawn)
    train = open_source(data, data.train_split)
    splits = []
    for split in (train, open_source(data, data.eval_split, like=describe(train))):
        if not isinstance(split, Arrays):
            raise UserError(
                f"{data.source} has {split.size:,} bytes of pictures; the playground trains only "
                "from memory",
                exit_code=1,
            )
        if tuple(split.image_shape) != tuple(shape):
            raise UserError(
                f"the pictures of {data.source} are {split.image_shape}, but the network of the "
                f"run takes {shape}"
            )
        if split.element.kind != "image":
            raise UserError(
                f"{data.source} holds {split.element.kind}s; the playground is for images"
            )
        splits.append(dataclasses.replace(split, images=to_bytes(split.images)))
    train, test = splits
    return train, test


def made(value: T | None) -> T:
    """What an earlier step of the trainer has made; `Trainer._todo` keeps their order."""
    if value is None:
        raise RuntimeError("a step of the trainer came before what it needs")
    return value
