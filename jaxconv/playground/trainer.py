"""The live trainer: a chain network that learns in a thread, step by step, which can be paused,
stepped, rebuilt and stopped.

The thread compiles, reads the pictures, and trains, whichever is to be done next; what it is told
is looked at between two steps.
"""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

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

log = logging.getLogger(__name__)

# Test images that the accuracy is of, and how many of them are new each time.
WINDOW, _NEW = 200, 50
# Seconds between two reports of a training that runs, and points of its curves that are kept.
_EVERY, _POINTS = 0.2, 400
# X's and O's that are drawn to learn from, and to be tested on.
_DRAWN = {"train_examples": 3000, "test_examples": 1000}
_MOST_RATE = 10.0


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """A report: the mean loss of the steps since the one before, and the accuracy on the last
    `WINDOW` test images (NaN before any).
    """

    step: int
    loss: float
    accuracy: float


class Trainer:
    """Trains in a thread of its own; every method may be called from any other.

    Args:
      config: whose data is learnt from, and how it is normalised.
      shape: of the pictures, (H, W, C).
      class_names: one name a class.
      changed: called without arguments, in the trainer's thread, whenever something that can be
        seen has changed.

    Attributes:
      status: `waiting` for its first command, `reading` the pictures, `compiling`, `paused`,
        `training`, or `stopped` by trouble.
      message: what went wrong, empty while all is well.
      points: the reports so far; of a long training only some of the older ones.
      step: steps done.
      parameters: of the network.
      seconds: that the last compiling took.
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
        """Those that are wanted now."""
        return self._settings

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self._rate

    @property
    def variation(self) -> xo.Variation:
        """How the X's and O's differ that are learnt from."""
        return self._variation

    @property
    def network(self) -> tuple[NetworkView, Any] | None:
        """The network as it is now, and its variables; None before there is one."""
        with self._wake:
            return (
                (self._built.shown, self._state.variables) if self._built and self._state else None
            )

    def start(self) -> None:
        """Train until it is paused."""
        self._command(running=True, steps=0)

    def pause(self) -> None:
        """Stop after the step that is being done."""
        self._command(running=False, steps=0)

    def do_step(self) -> None:
        """Do exactly one more step, and pause."""
        self._command(running=False, steps=1)

    def set(
        self,
        settings: Settings | None = None,
        rate: float | None = None,
        variation: xo.Variation | None = None,
    ) -> None:
        """Change what is given. Other settings begin a new network; the rate and the variation hold
        from the next step on.

        Raises:
          UserError: a value is out of its range, or a layer does not fit: the message has the
            arithmetic.
        """
        if rate is not None and not 0 <= rate <= _MOST_RATE:
            raise UserError(
                f"the learning rate is {rate}; it must lie between 0 and {_MOST_RATE:g}"
            )
        if settings is not None:
            check_fits(settings, self.shape)
        with self._wake:
            self._settings = settings or self._settings
            self._rate = self._rate if rate is None else rate
            self._variation = variation or self._variation
            self._wanted = True
            self._wake.notify()

    def hold(self) -> None:
        """Begin no step until `release`: whoever draws has the machine to themselves."""
        with self._wake:
            self._holders += 1

    def release(self) -> None:
        """The end of one `hold`."""
        with self._wake:
            self._holders -= 1
            self._wake.notify()

    def begin(self) -> None:
        """Begin anew, with other first weights."""
        with self._wake:
            self._seed += 1
            self._wanted = True
            self._wake.notify()

    def close(self) -> None:
        """End the thread after the step that is being done."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _command(self, running: bool, steps: int) -> None:
        with self._wake:
            self._wanted, self._running, self._steps = True, running, steps
            self._wake.notify()

    def _work(self) -> None:
        """The thread."""
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
                todo = self._todo()
            try:
                todo()
            except UserError as error:
                self._stop(str(error))
            except Exception as error:  # the thread would be gone, and the page would wait for ever
                log.error("the training stopped: %s", in_words(error))
                log.debug("from where", exc_info=True)
                self._stop(in_words(error))

    def _stop(self, why: str) -> None:
        with self._wake:
            self._wanted = self._running = False
            self._steps = 0
            self._say("stopped", why)

    def _say(self, status: str, message: str = "") -> None:
        # In this order: whoever sees the status finds its message.
        self.message, self.status = message, status
        self._changed()

    def _todo(self) -> Callable[[], None] | None:
        """What is to be done next; None: nothing."""
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
            # One without the other would not fit.
            self._built, self._state, self._begun = (
                built,
                built.init(key_of(self._seed)),
                (settings, self._seed),
            )
        self._clear()

    def _init(self) -> None:
        seed = self._seed
        with self._wake:
            self._state, self._begun = self._built.init(key_of(seed)), (self._built.settings, seed)
        self._clear()

    def _clear(self) -> None:
        self.points, self.step = [], 0
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        self._losses, self._tested = [], 0
        self._answers.clear()
        self._say("paused")

    def _train(self) -> None:
        _, train, _ = self._data
        if self.status != "training" and self._running:
            self._say("training")
        index = train_indices(self._seed, self.step, self._built.settings.batch_size, len(train))
        batch = {"image": train.images[index], "label": train.labels[index]}
        state, loss = self._built.train(
            self._state, batch, key_of(self._seed), np.float32(self._rate)
        )
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
                "it, and begin anew"
            )
        if not self._running or time.perf_counter() - self._reported >= _EVERY:
            self._report()

    def _report(self) -> None:
        """Test on some more images, and add a point to the curves."""
        _, _, test = self._data
        # Shuffled: a folder has one class after the other.
        index = train_indices(0, self._tested, _NEW, len(test))
        self._answers.extend(
            np.asarray(
                self._built.test(self._state.variables, test.images[index], test.labels[index])
            )
            > 0
        )
        self._tested += 1
        points = [
            *self.points,
            CurvePoint(self.step, float(np.mean(self._losses)), float(np.mean(self._answers))),
        ]
        # The newest stays, whatever is left out.
        self.points = points if len(points) <= _POINTS else [*points[:-1:2], points[-1]]
        self._losses, self._reported = [], time.perf_counter()
        self._changed()


def variation_of(config: Any) -> xo.Variation:
    """How the X's and O's of a config differ."""
    return xo.Variation(
        **{field.name: config.data.xo[field.name] for field in dataclasses.fields(xo.Variation)}
    )


def read(config: Any, shape: tuple[int, ...], variation: xo.Variation) -> tuple[Arrays, Arrays]:
    """The pictures to learn from and to be tested on: X's and O's drawn with this variation, or
    what the config's source has.

    Raises:
      UserError: they cannot be read, or do not fit into memory by the config's limit.
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
    splits = train, open_source(data, data.eval_split, like=describe(train))
    for split in splits:
        if not isinstance(split, Arrays):
            raise UserError(
                f"{data.source} has {split.size:,} bytes of pictures, and the playground trains "
                "from memory alone",
                exit_code=1,
            )
        if tuple(split.image_shape) != tuple(shape):
            raise UserError(
                f"the pictures of {data.source} are {split.image_shape}, where the network of the "
                f"run takes {shape}"
            )
        if split.element.kind != "image":
            raise UserError(
                f"{data.source} holds {split.element.kind}s; the playground is for images"
            )
    train, test = (dataclasses.replace(split, images=to_bytes(split.images)) for split in splits)
    return train, test
