"""Ensembles: several networks in one program, which differ by their seed or by a swept setting.

Examples are the lecture's seven AlexNets and a sweep over the learning rate. A state and the result
of a step have a leading axis [K] of members. Up to rounding, each member equals a separate run with
its seed or its value of the swept setting.

    vmap    one program over all members at once
    map     one member after another, in a loop
    unroll  one member after another, with the loop unrolled
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.checks import FORMS, TRACED, swept_values
from jaxconv.train.parallel import Parallel
from jaxconv.train.state import TrainState
from jaxconv.train.watch import is_out_of_memory
from jaxconv.train.workdir import read_json, write_json

# Timed steps of each form in `fastest_form`; one is enough for a form that is three times slower
# than another.
_TURNS = 3


@dataclasses.dataclass(frozen=True)
class Members:
    """The members of an ensemble.

    Attributes:
      names: the members' names, for tables and curves.
      seeds: the members' seeds.
      swept: the members' values of the setting in `config.ensemble.over`, by its name; empty for an
        ensemble of seeds.
      own_batches: whether each member sees the examples in its own order.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    swept: dict[str, tuple[float, ...]]
    own_batches: bool

    def order_seeds(self) -> tuple[int, ...]:
        """Seeds of the example orders, see `loading.Order`."""
        return self.seeds if self.own_batches else self.seeds[:1]

    def apart(self, state: TrainState) -> list[TrainState]:
        """The members' states as a list."""
        return [jax.tree.map(lambda x, n=n: x[n], state) for n in range(len(self.names))]

    def values(self) -> dict[str, jax.Array]:
        """The values of `swept`, float32 [K] each."""
        return {key: jnp.array(values, jnp.float32) for key, values in self.swept.items()}

    def init(self, init: Callable[[jax.Array], TrainState]) -> Callable[[jax.Array], TrainState]:
        """Turn key -> state into keys [K] -> the state of all members."""
        return lambda keys: lax.map(init, keys)


def members_of(config: Any) -> Members | None:
    """The members specified by `config.ensemble`; None for a run of one network."""
    ensemble, seed, swept = config.ensemble, config.seed, swept_values(config)
    if swept:
        key, values = swept
        names = tuple(f"{key} {value:g}" for value in values)
        return Members(names, (seed,) * len(values), {key: values}, False)
    if ensemble.size == 1:
        return None
    seeds = tuple(seed + n for n in range(ensemble.size))
    return Members(tuple(f"seed {s}" for s in seeds), seeds, {}, ensemble.batches == "own")


def with_place(config: Any) -> Any:
    """The config with a nonzero value for the swept setting, so that the step includes it."""
    swept = swept_values(config)
    if not swept:
        return config
    key, values = swept
    section, _, name = TRACED[key].partition(".")
    changed = type(config)(config.to_dict())
    changed[section][name] = max(values)
    return changed


def of_each(name: str, members: Members | None) -> tuple[str, ...]:
    """The names of a metric in metrics.jsonl.

    For example `eval/top1` for one network, `eval/top1/0` and so on for an ensemble's members.
    """
    return (
        (name,)
        if members is None
        else tuple(f"{name}/{number}" for number in range(len(members.names)))
    )


def over_members(function: Callable, form: str, axes: tuple[int | None, ...]) -> Callable:
    """Apply a function to all members.

    Its arguments have a leading axis of members where `axes` is 0, and are shared where it is None.
    """
    if form == "vmap":
        return jax.vmap(function, axes)

    def of_member(member: Callable[[Any], Any], *arguments: Any) -> Any:
        return function(
            *(
                argument if axis is None else member(argument)
                for argument, axis in zip(arguments, axes, strict=True)
            )
        )

    def one_by_one(*arguments: Any) -> Any:
        own = [argument for argument, axis in zip(arguments, axes, strict=True) if axis == 0]
        count = len(jax.tree.leaves(own)[0])
        pick = lambda n: lambda tree: jax.tree.map(lambda x: x[n], tree)  # noqa: E731
        if form == "map":
            return lax.map(lambda n: of_member(pick(n), *arguments), jnp.arange(count))
        results = [of_member(pick(n), *arguments) for n in range(count)]
        return jax.tree.map(lambda *each: jnp.stack(each), *results)

    return one_by_one


def form_of_run(config: Any, folder: Path) -> str:
    """How the members of an existing run were computed."""
    path = folder / "ensemble.json"
    if config.ensemble.by != "auto" or not path.exists():
        return "unroll" if config.ensemble.by == "auto" else config.ensemble.by
    return read_json(path, dict)["by"]


def fastest_form(
    config: Any, folder: Path, parallel: Parallel, prepare: Callable[[str], Callable[[], None]]
) -> tuple[str, dict[str, float]]:
    """The form for `config.ensemble.by = "auto"`: measured once, then stored in the workdir.

    Args:
      config: the whole config.
      folder: the workdir.
      parallel: its first process decides.
      prepare: form -> a function that runs a training step in that form and waits for its end.

    Returns:
      The form, and the seconds per step of each form that fits in memory; empty if the choice was
      already stored.
    """
    path = folder / "ensemble.json"
    if path.exists():
        return form_of_run(config, folder), {}
    seconds = {}
    for form in reversed(FORMS):  # on a CPU the others can be very slow
        turns: list[float] = []
        try:
            step = prepare(form)
            step()
        except jax.errors.JaxRuntimeError as error:
            # vmap takes the most memory: skip it if another form fits.
            if not is_out_of_memory(error) or (form == FORMS[0] and not seconds):
                raise
            continue
        while len(turns) < _TURNS:
            worth_it = not turns or not seconds or turns[-1] < 3 * min(seconds.values())
            # The first process decides: clocks differ, and a step that only some processes take
            # would wait for the others forever.
            if not parallel.broadcast_from_first(int(worth_it)):
                break
            start = time.perf_counter()
            step()
            turns.append(time.perf_counter() - start)
        seconds[form] = statistics.median(turns)
    form = FORMS[parallel.broadcast_from_first(FORMS.index(min(seconds, key=seconds.__getitem__)))]
    parallel.on_first_process(lambda: write_json(path, {"by": form, "seconds_a_step": seconds}))
    return form, seconds
