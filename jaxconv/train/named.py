"""Optimizers and schedules by name: optax's, such as `optax.contrib.muon`, and custom ones.

An optimizer is a function (learning_rate, **config.optimizer.kwargs) -> an optax optimizer. The
rate that it gets is that of the step: the schedule's, times the group's and the plateau's factors.

A schedule is a function (..., **config.optimizer.schedule.kwargs) -> (step -> rate). Arguments that
the kwargs leave out come from the config, by their names:

    peak_value, or else init_value, value or learning_rate    optimizer.learning_rate
    total_steps, decay_steps, transition_steps, if required   the steps of the training
    warmup_steps                                              optimizer.schedule.warmup_steps
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxconv.checks import LENGTHS
from jaxconv.errors import UserError, in_words, nearest
from jaxconv.own import is_own, own
from jaxconv.train.state import schedule_free_states
from jaxconv.train.step import with_extra_args

# Arguments of a schedule that can be the learning rate; the first that it has is.
PEAKS = ("peak_value", "init_value", "value", "learning_rate")
_DIMENSIONS = "muon_weight_dimension_numbers"

# The default of **kwargs.
_ANY = object()

# Learning rate -> optimizer.
Factory = Callable[[Any], optax.GradientTransformation]


def optimizer_factory(config: Any) -> Factory:
    """The optimizer that `config.optimizer` names, as a function of the learning rate.

    Raises:
      UserError: it cannot be found, takes no learning rate, or has no such arguments.
    """
    name, key = config.name, "config.optimizer"
    function = own(name, f"{key}.name")
    has = _arguments(function)
    if "learning_rate" not in has or name.rpartition(".")[2].startswith("scale_by_"):
        raise UserError(
            f"{key}.name is {name!r}, which is not an optimizer with a learning rate; name one "
            "such as optax.adam, or a function of your own (learning_rate, ...) -> an optimizer"
        )
    kwargs = dict(config.kwargs)
    _check_kwargs(f"{key}.kwargs", name, kwargs, has, {"learning_rate": "learning_rate"})
    if config.weight_decay and kwargs.get("weight_decay", has.get("weight_decay")):
        raise UserError(
            f"{key}.weight_decay is {config.weight_decay}, and {name} has a weight_decay of its "
            f"own; set one of them to 0, {key}.kwargs.weight_decay for the other"
        )
    if _DIMENSIONS in has:
        kwargs.setdefault(_DIMENSIONS, filter_dimensions)

    def make(rate: Any) -> optax.GradientTransformation:
        with _reraise(f"{key}.name", name):
            made = function(
                learning_rate=rate,
                **{argument: _value(value, argument, rate) for argument, value in kwargs.items()},
            )
            if not isinstance(made, optax.GradientTransformation):
                raise TypeError(f"it returns {type(made).__name__}, not an optax optimizer")
        return optax.with_extra_args_support(made)

    return make


def of_group(config: Any, make: Factory, factor: float) -> optax.GradientTransformationExtraArgs:
    """The optimizer of one parameter group, whose rate is the step's times `factor`."""

    def init(params: Any) -> Any:
        # Arrays of a fixed type, because a step's state must have the types of the one before.
        fixed = lambda x: jnp.asarray(x, jnp.result_type(x))  # noqa: E731
        with _reraise("config.optimizer.name", config.name):
            return jax.tree.map(fixed, make(config.learning_rate * factor).init(params))

    def update(
        grads: Any, state: Any, params: Any = None, *, learning_rate: jax.Array, **extra: Any
    ) -> tuple[Any, Any]:
        with _reraise("config.optimizer.name", config.name):
            updates, new = make(learning_rate * factor).update(grads, state, params, **extra)
            return updates, jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new, state)

    return with_extra_args(init, update)


def with_decay(
    config: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    factors: Sequence[tuple[float, float, bool]],
    l2: Any,
    weight_decay: Any,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with both kinds of weight decay of train/optim.py.

    Args:
      config: `config.optimizer`; a kind that is 0 there is off.
      optimizer: takes the extra argument `learning_rate`.
      factors: (learning rate factor, weight decay factor, frozen) of each parameter.
      l2, weight_decay: the decays, which may be traced.
    """

    def add(values: Any, amounts: Sequence[Any], params: Any) -> Any:
        leaves, structure = jax.tree.flatten(values)
        triples = zip(leaves, amounts, jax.tree.leaves(params), strict=True)
        return jax.tree.unflatten(structure, [v if a is None else v + a * p for v, a, p in triples])

    def update(
        grads: Any, state: Any, params: Any, *, learning_rate: jax.Array, **extra: Any
    ) -> tuple[Any, Any]:
        on = [0 if frozen else decay for _, decay, frozen in factors]
        if config.l2:
            grads = add(grads, [l2 * decay if decay else None for decay in on], params)
        updates, state = optimizer.update(
            grads, state, params, learning_rate=learning_rate, **extra
        )
        if config.weight_decay:
            amounts = [
                -learning_rate * rate * weight_decay * decay if decay else None
                for (rate, _, _), decay in zip(factors, on, strict=True)
            ]
            updates = add(updates, amounts, params)
        return updates, state

    return with_extra_args(optimizer.init, update)


def try_optimizer(config: Any, optimizer: Any, params: Any) -> None:
    """Raise UserError unless an optimizer by name can update these parameters, given by shape."""
    key = "config.optimizer"
    number = jax.ShapeDtypeStruct((), jnp.float32)

    def one_update(params: Any, rate: jax.Array, value: jax.Array) -> Any:
        state = optimizer.init(params)
        updates, new = optimizer.update(
            params, state, params, learning_rate=rate, value=value, grad=params
        )
        return optax.apply_updates(params, updates), new, state

    changed, new, state = jax.eval_shape(one_update, params, number, number)
    if jax.tree.structure(new) != jax.tree.structure(state):
        raise UserError(
            f"{key}.name is {config.name!r}, whose state has another structure after an update"
        )
    keys = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    if keys:
        raise UserError(
            f"{key}.name is {config.name!r}, whose state has a random key, "
            "which a checkpoint cannot hold"
        )
    if config.weight_decay and schedule_free_states(state):
        raise UserError(
            f"{key}.weight_decay is {config.weight_decay}, which would change the weights that "
            f"{config.name} averages; give {key}.kwargs.weight_decay"
        )


def named_schedule(config: Any, total_steps: int, peak: Any) -> Callable[[jax.Array], jax.Array]:
    """The schedule that `config.optimizer.schedule` names: step -> learning rate, float32.

    Args:
      config: `config.optimizer`.
      total_steps: steps of the training.
      peak: the learning rate, which may be traced.

    Raises:
      UserError: it cannot be found, has no such arguments, or fails; some schedules of optax cannot
        take a traced learning rate.
    """
    schedule, key = config.schedule, "config.optimizer.schedule"
    function = own(schedule.name, f"{key}.name")
    has, kwargs = _arguments(function), dict(schedule.kwargs)
    name_of_peak = next((argument for argument in PEAKS if argument in has), None)
    if name_of_peak is None:
        raise UserError(
            f"{key}.name is {schedule.name!r}, which takes no learning rate; a schedule takes it "
            f"as {', '.join(PEAKS)}"
        )
    given = {name_of_peak: peak}
    if "warmup_steps" in has and schedule.warmup_steps:
        given["warmup_steps"] = schedule.warmup_steps
    reserved = dict.fromkeys(given.keys() & {"warmup_steps"}, "schedule.warmup_steps")
    required = [argument for argument, default in has.items() if default is inspect.Parameter.empty]
    given |= dict.fromkeys([n for n in LENGTHS if n in required and n not in kwargs], total_steps)
    _check_kwargs(
        f"{key}.kwargs",
        schedule.name,
        kwargs,
        has,
        {name_of_peak: "learning_rate"} | reserved,
        given,
    )
    with _reraise(f"{key}.name", schedule.name):
        made = function(**given, **{n: _value(value, n, peak) for n, value in kwargs.items()})
        rate = jax.eval_shape(made, jax.ShapeDtypeStruct((), jnp.int32))
        if getattr(rate, "shape", None) != ():
            raise TypeError(f"of a step it returns {rate}, not one number")
    return lambda step: jnp.asarray(made(jnp.asarray(step, jnp.int32)), jnp.float32)


def warms_up(schedule: Any) -> bool:
    """Whether a schedule by name has the argument `warmup_steps`: then no warm-up is added."""
    return "warmup_steps" in _arguments(own(schedule.name, "config.optimizer.schedule.name"))


def filter_dimensions(params: Any) -> Any:
    """Muon's dimension numbers of a network's parameters.

    Filters [*window, in, out] and matrices [in, out] are matrices from all axes but the last to the
    last; other parameters have None, and are left to Adam.
    """

    def of(x: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if x.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    return jax.tree.map(of, params)


def _arguments(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The keyword arguments of a function and their defaults."""
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL
    found = inspect.signature(function).parameters.values()
    return {
        p.name: _ANY if p.kind is p.VAR_KEYWORD else p.default
        for p in found
        if p.kind not in positional
    }


def _check_kwargs(
    key: str,
    name: str,
    kwargs: Mapping[str, Any],
    has: Mapping[str, Any],
    elsewhere: Mapping[str, str],
    given: Mapping[str, Any] | None = None,
) -> None:
    """Raise UserError for arguments that are unknown, missing, or set elsewhere in the config."""
    known = [n for n, default in has.items() if default is not _ANY and n not in elsewhere]
    for argument in kwargs:
        if argument in elsewhere:
            raise UserError(f"{key}.{argument}: set config.optimizer.{elsewhere[argument]} instead")
        if argument not in known and _ANY not in has.values():
            raise UserError(
                f"{key}.{argument}: {name} has no such argument{nearest(argument, known)}; it has "
                f"{', '.join(known) or 'no other'}"
            )
    missing = [
        n
        for n in known
        if has[n] is inspect.Parameter.empty and n not in kwargs and n not in (given or {})
    ]
    if missing:
        raise UserError(
            f"{key} lacks {', '.join(missing)}, which {name} needs: give {key}.{missing[0]}"
        )


def _value(value: Any, argument: str, rate: Any) -> Any:
    """The value of a keyword argument; a text such as `optax.sgd` stands for what it names.

    A named function that takes a learning rate is an optimizer, and gets the rate.
    """
    if not (isinstance(value, str) and is_own(value)):
        return value
    found = own(value, f"config.optimizer.kwargs.{argument}")
    return found(learning_rate=rate) if "learning_rate" in _arguments(found) else found


@contextlib.contextmanager
def _reraise(key: str, name: str) -> Iterator[None]:
    """Turn any error of an optimizer or schedule into a UserError."""
    try:
        yield
    except UserError:
        raise
    except jax.errors.ConcretizationTypeError as error:
        raise UserError(
            f"{key} is {name!r}, which cannot take a traced learning rate, as several networks in "
            "one program need; compare the rates by `jaxconv sweep`"
        ) from error
    except Exception as error:
        raise UserError(f"{key} is {name!r}, which fails: {in_words(error)}") from error
