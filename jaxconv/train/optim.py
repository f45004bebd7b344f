"""Optimizers, parameter groups and learning rates.

An optimizer gets the learning rate of each step as the extra argument `learning_rate`. The built-in
ones multiply a direction by it. The rate is therefore outside the momentum, as in PyTorch. In
papers that have it inside, only the steps after a change of the rate differ.

    g <- gradient, clipped, + l2 * w                  coupled weight decay, as in the papers
    sgd      v <- momentum * v + g                    Krizhevsky et al. 2012, section 5
    rmsprop  s <- beta2 * s + (1 - beta2) * g^2       Tieleman and Hinton 2012, as in TensorFlow 1:
             v <- momentum * v + g / sqrt(s + epsilon)         s starts at 1
    adamw    m, s <- means of g and g^2 by momentum and beta2, bias-corrected
             v <- m / (sqrt(s) + epsilon)             Kingma and Ba 2015, arXiv:1412.6980
    lamb     u <- adamw's v + weight_decay * w        You et al. 2020, arXiv:1904.00962
             v <- |w| / |u| * u
    lars     v <- momentum * v + trust_coefficient * |w| / |g| * g
                                                      You et al. 2017, arXiv:1708.03888
    w <- w - learning_rate * (v + weight_decay * w)   decoupled weight decay, except for lamb:
                                                      Loshchilov and Hutter 2019, arXiv:1711.05101

The norms |.| are those of one parameter array. Parameters without weight decay, by default biases
and norms, are not scaled by them, as in the authors' code.

Other optimizers, `optax.NAME` and custom ones, are in named.py. They combine with parameter groups,
clipping, l2 and decoupled weight decay alike.
"""

import re
import types
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxconv.checks import OPTIMIZERS, SCHEDULES
from jaxconv.errors import UserError
from jaxconv.train import named
from jaxconv.train.state import Plateau
from jaxconv.train.step import descending

# The group of all parameters that no pattern matches.
REST = "rest"
# The swept settings of a run that is not a sweep.
NOT_SWEPT: Mapping[str, jax.Array] = types.MappingProxyType({})


def parameter_paths(params: Any) -> list[str]:
    """Paths of the parameters, such as `conv1_1/kernel`, in the order of the tree's leaves."""
    return [
        "/".join(str(entry.key) for entry in path)
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]


def assign_groups(paths: list[str], patterns: dict[str, str]) -> list[str]:
    """The group of each parameter; `rest` if no pattern matches.

    Raises:
      UserError: a pattern is not a regular expression or matches nothing, or two patterns match the
        same parameter.
    """
    found: list[list[str]] = [[] for _ in paths]
    for name, pattern in patterns.items():
        if name == REST:
            raise UserError(
                f"optimizer.groups.{REST}: the name is reserved for the parameters that no pattern "
                "matches; choose another"
            )
        matches = [
            i
            for i, path in enumerate(paths)
            if _compiled(f"optimizer.groups.{name}.pattern", pattern).search(path)
        ]
        if not matches:
            raise UserError(
                f"optimizer.groups.{name}.pattern {pattern!r} matches none of the parameters "
                f"{', '.join(paths)}"
            )
        for i in matches:
            found[i].append(name)
    for path, names in zip(paths, found, strict=True):
        if len(names) > 1:
            raise UserError(
                f"parameter {path} is in groups {' and '.join(names)}, but a parameter can be in "
                "only one group; narrow a pattern"
            )
    return [names[0] if names else REST for names in found]


def make_optimizer(
    config: Any, params: Any, swept: Mapping[str, jax.Array] = NOT_SWEPT
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `config.optimizer`.

    Its update takes the learning rate of the step as the extra argument `learning_rate`, see
    `make_train_step`.

    Args:
      config: `config.optimizer`.
      params: the parameters, or their shapes; their paths determine the groups.
      swept: values that override settings by name, and may be traced; a setting that is 0 in the
        config stays disabled.

    Raises:
      UserError: see `assign_groups`; or the optimizer has no such arguments, or fails.
    """
    paths, structure = parameter_paths(params), jax.tree.structure(params)
    groups = assign_groups(
        paths, {name: settings.pattern for name, settings in config.groups.items()}
    )
    undecayed = _compiled("optimizer.undecayed", config.undecayed) if config.undecayed else None
    labels = [
        f"{g}, undecayed" if undecayed and undecayed.search(path) else g
        for g, path in zip(groups, paths, strict=True)
    ]
    factors = [_factors(config, label) for label in labels]
    values = {**config, **swept}
    if config.name in OPTIMIZERS:
        # Sorted: the order affects the program, and the compilation cache finds a program only if
        # it is the same at every start.
        chains: dict[Hashable, optax.GradientTransformation] = {
            label: _chain(config, values, *_factors(config, label)) for label in sorted(set(labels))
        }
        optimizer = descending(optax.partition(chains, jax.tree.unflatten(structure, labels)))
    else:
        make = named.optimizer_factory(config)
        parts: dict[Hashable, optax.GradientTransformation] = {
            g: optax.set_to_zero() if frozen else named.of_group(config, make, rate)
            for g in sorted(set(groups))
            for rate, _, frozen in [_factors(config, g)]
        }
        optimizer = named.with_decay(
            config,
            optax.partition(parts, jax.tree.unflatten(structure, groups)),
            factors,
            values["l2"],
            values["weight_decay"],
        )
        if not swept:
            named.try_optimizer(config, optimizer, params)
    if config.adaptive_clip:
        optimizer = optax.chain(_adaptive_clip(config, params, paths), optimizer)
    if not config.clip_norm:
        return optimizer
    # Frozen parameters do not count in the norm.
    frozen = jax.tree.unflatten(structure, [frozen for _, _, frozen in factors])
    return optax.chain(
        optax.masked(optax.set_to_zero(), frozen),
        optax.clip_by_global_norm(config.clip_norm),
        optimizer,
    )


def _adaptive_clip(config: Any, params: Any, paths: list[str]) -> optax.GradientTransformation:
    """Clips each filter's and neuron's gradient by the norm of its weights; biases as a whole.

    Brock et al. 2021, arXiv:2102.06171, section 4.1. Optax takes kernels of three axes for others
    than 1-D convolutions, so these are told which axes a filter has.
    """
    exempt = config.adaptive_clip_except
    pattern = _compiled("optimizer.adaptive_clip_except", exempt) if exempt else None
    leaves, structure = jax.tree.flatten(params)
    clipped = [not (pattern and pattern.search(path)) for path in paths]

    def of(axis: tuple[int, ...] | None, chosen: Callable[[int], bool]) -> Any:
        mask = [on and chosen(leaf.ndim) for on, leaf in zip(clipped, leaves, strict=True)]
        clip = optax.adaptive_grad_clip(config.adaptive_clip, axis=axis)
        return optax.masked(clip, jax.tree.unflatten(structure, mask))

    return optax.chain(of((0, 1), lambda n: n == 3), of(None, lambda n: n != 3))


def describe_groups(config: Any, params: Any) -> str:
    """Describe in one line how many values each group has."""
    paths, sizes = parameter_paths(params), [leaf.size for leaf in jax.tree.leaves(params)]
    counts: Counter[str] = Counter()
    for name, size in zip(
        assign_groups(paths, {n: s.pattern for n, s in config.groups.items()}), sizes, strict=True
    ):
        counts[name] += size
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def frozen_parameters(config: Any, params: Any) -> Any:
    """The tree of the parameters, with whether each is in a frozen group of `config.optimizer`."""
    patterns = {name: settings.pattern for name, settings in config.groups.items()}
    groups = assign_groups(parameter_paths(params), patterns)
    frozen = [name != REST and config.groups[name].frozen for name in groups]
    return jax.tree.unflatten(jax.tree.structure(params), frozen)


def frozen_statistics(config: Any, params: Any, model_state: Any) -> list[str]:
    """The frozen modules whose BatchNorm statistics change while training, by path.

    Args:
      config: the whole config; with `frozen_norm` no statistics change.
      params, model_state: of the network, or their shapes.
    """
    groups = config.optimizer.groups
    if config.model.kwargs.get("frozen_norm") or "batch_stats" not in model_state:
        return []
    paths = parameter_paths(params)
    of_paths = assign_groups(paths, {name: settings.pattern for name, settings in groups.items()})
    frozen = {
        path.rpartition("/")[0]
        for path, name in zip(paths, of_paths, strict=True)
        if name != REST and groups[name].frozen
    }
    statistics = parameter_paths(model_state["batch_stats"])
    return [*dict.fromkeys(m for p in statistics if (m := p.rpartition("/")[0]) in frozen)]


def _compiled(key: str, pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key} {pattern!r} is not a regular expression: {error}") from error


def _factors(config: Any, label: str) -> tuple[float, float, bool]:
    """(learning rate factor, weight decay factor, frozen) of a group."""
    name, _, undecayed = label.partition(", ")
    rate, decay, frozen = 1.0, 1.0, False
    if name != REST:
        settings = config.groups[name]
        rate, decay, frozen = settings.learning_rate, settings.weight_decay, settings.frozen
    return rate, 0.0 if undecayed else decay, frozen


def _chain(
    config: Any, values: Mapping[str, Any], rate: float, decay: float, frozen: bool
) -> optax.GradientTransformation:
    if frozen:
        return optax.set_to_zero()
    parts = []
    if config.l2 * decay:
        parts.append(optax.add_decayed_weights(values["l2"] * decay))
    if config.name == "lars" and decay:
        parts.append(optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient))
    if config.name == "rmsprop":
        parts.append(optax.scale_by_rms(config.beta2, config.epsilon, initial_scale=1.0))
    if config.name in ("adamw", "lamb"):
        parts.append(
            optax.scale_by_adam(
                values["momentum"], config.beta2, config.epsilon, nesterov=config.nesterov
            )
        )
    elif config.momentum:
        parts.append(optax.trace(values["momentum"], nesterov=config.nesterov))
    if config.weight_decay * decay:
        parts.append(optax.add_decayed_weights(values["weight_decay"] * decay))
    if config.name == "lamb" and decay:
        parts.append(optax.scale_by_trust_ratio())
    if rate != 1:
        parts.append(optax.scale(rate))
    return optax.chain(*parts) if parts else optax.identity()


def make_schedule(
    config: Any, total_steps: int, swept: Mapping[str, jax.Array] = NOT_SWEPT
) -> Callable[[jax.Array], jax.Array]:
    """The schedule of `config.optimizer`: step -> learning rate, float32.

    After the warm-up, `cosine` falls to 0 at `total_steps`; `step` multiplies by `factor` after
    each of `boundaries`; `plateau` is constant here, because its factor is in the state. For other
    schedules see named.py. A learning rate in `swept` overrides the config's, and may be traced.

    Raises:
      UserError: the warm-up is longer than the training, or a schedule by name cannot be used.
    """
    schedule, peak = config.schedule, swept.get("learning_rate", config.learning_rate)
    if schedule.warmup_steps >= total_steps and schedule.name == "cosine":
        raise UserError(
            f"optimizer.schedule.warmup_steps is {schedule.warmup_steps}, but the training has "
            f"only {total_steps} steps; use fewer warm-up steps"
        )
    by_name = None
    if schedule.name not in SCHEDULES:
        by_name = named.named_schedule(config, total_steps, peak)
    warmup = 0 if by_name and named.warms_up(schedule) else schedule.warmup_steps

    def rate(step: jax.Array) -> jax.Array:
        given, step = step, jnp.asarray(step, jnp.float32)
        value = by_name(given) if by_name else jnp.asarray(peak, jnp.float32)
        if schedule.name == "step":
            passed = sum((step >= boundary).astype(jnp.float32) for boundary in schedule.boundaries)
            value = value * jnp.float32(schedule.factor) ** passed
        if schedule.name == "cosine":
            done = (step - schedule.warmup_steps) / (total_steps - schedule.warmup_steps)
            value = value * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        if warmup:
            value = jnp.where(
                step < warmup, jnp.asarray(peak, jnp.float32) * (step + 1) / warmup, value
            )
        return value

    return rate


def update_plateau(
    plateau: Plateau,
    value: jax.Array | np.ndarray | float,
    factor: float,
    patience: int,
    higher_is_better: bool,
) -> Plateau:
    """Update the plateau after an evaluation.

    This automates the lecture's "reduced by 10 manually when val accuracy plateaus": after
    `patience` evaluations in a row without a new best `value`, the learning rate's scale is
    multiplied by `factor`.
    """
    value = jnp.asarray(value, jnp.float32) * (1 if higher_is_better else -1)
    better = value > plateau.best
    since = jnp.where(better, 0, plateau.since + 1)
    stuck = since >= patience
    return Plateau(
        scale=jnp.where(stuck, plateau.scale * jnp.float32(factor), plateau.scale),
        best=jnp.where(better, value, plateau.best),  # not the maximum, which would be NaN of one
        since=jnp.where(stuck, 0, since),
    )
