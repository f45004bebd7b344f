"""Optimizers against their formulas, parameter groups, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxconv.config import default_config, group
from jaxconv.errors import UserError
from jaxconv.train.optim import (
    assign_groups,
    frozen_parameters,
    make_optimizer,
    make_schedule,
    parameter_paths,
    update_plateau,
)
from jaxconv.train.state import Plateau
from jaxconv.train.step import partly_frozen

PARAMS = {
    "conv1": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])},
    "norm1": {"scale": jnp.array([4.0])},
}


def optimizer(**changes):
    config = default_config().optimizer
    for key, value in changes.items():
        config[key] = value
    return config


def run(config, steps=3, rate=0.1):
    """Parameters after some steps with the gradient equal to 1 everywhere."""
    tx = make_optimizer(config, PARAMS)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        gradient = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(gradient, state, params, learning_rate=rate)
        params = optax.apply_updates(params, updates)
    return params


def sgd(w, l2=0.0, weight_decay=0.0, momentum=0.9, nesterov=False, steps=3, rate=0.1):
    """The formulas of train/optim.py in plain numbers."""
    w, v = np.float64(w), 0.0
    for _ in range(steps):
        gradient = 1 + l2 * w
        v = momentum * v + gradient
        w = w - rate * ((gradient + momentum * v if nesterov else v) + weight_decay * w)
    return w


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.0},
        {"nesterov": True},
        {"l2": 0.3},
        {"weight_decay": 0.3},
        {"l2": 0.1, "weight_decay": 0.2},
    ],
)
def test_sgd_is_its_formula(settings):
    params = run(optimizer(**settings))
    undecayed = {key: value for key, value in settings.items() if key not in ("l2", "weight_decay")}
    np.testing.assert_allclose(
        params["conv1"]["kernel"], [sgd(1, **settings), sgd(-2, **settings)], rtol=1e-6
    )
    np.testing.assert_allclose(params["conv1"]["bias"], [sgd(3, **undecayed)], rtol=1e-6)
    np.testing.assert_allclose(params["norm1"]["scale"], [sgd(4, **undecayed)], rtol=1e-6)


def test_the_two_weight_decays_differ():
    coupled, decoupled = (
        run(optimizer(**{name: 0.3}))["conv1"]["kernel"] for name in ("l2", "weight_decay")
    )
    assert not np.allclose(coupled, decoupled)


def test_everything_decays_where_asked():
    params = run(optimizer(l2=0.3, undecayed=""))
    np.testing.assert_allclose(params["conv1"]["bias"], [sgd(3, l2=0.3)], rtol=1e-6)


def test_groups():
    config = optimizer(l2=0.3)
    config.groups.norms = group("norm", learning_rate=0.5)
    config.groups.first = group("^conv1/kernel$", weight_decay=2.0)
    config.groups.still = group("bias", frozen=True)
    params = run(config)
    np.testing.assert_allclose(params["norm1"]["scale"], [sgd(4, rate=0.05)], rtol=1e-6)
    np.testing.assert_allclose(
        params["conv1"]["kernel"], [sgd(1, l2=0.6), sgd(-2, l2=0.6)], rtol=1e-6
    )
    np.testing.assert_array_equal(params["conv1"]["bias"], [3.0])


def test_every_parameter_is_in_exactly_one_group():
    paths = parameter_paths(PARAMS)
    assert paths == ["conv1/bias", "conv1/kernel", "norm1/scale"]
    assert assign_groups(paths, {"first": "^conv1"}) == ["first", "first", "rest"]
    with pytest.raises(UserError, match="parameter conv1/bias is in groups first and biases"):
        assign_groups(paths, {"first": "^conv1", "biases": "bias$"})
    with pytest.raises(
        UserError,
        match="optimizer.groups.last.pattern 'conv9' matches none of the parameters conv1/bias",
    ):
        assign_groups(paths, {"last": "conv9"})
    with pytest.raises(
        UserError, match=r"optimizer.groups.bad.pattern '\(' is not a regular expression"
    ):
        assign_groups(paths, {"bad": "("})
    with pytest.raises(UserError, match="the name is reserved"):
        assign_groups(paths, {"rest": "conv1"})


MATRIX = {"conv": {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.25]]), "bias": jnp.array([3.0, 0.0])}}
GRADIENTS = [
    jax.tree.map(
        lambda p, s=step: jnp.sin(jnp.arange(p.size, dtype=p.dtype) + 3 * s).reshape(p.shape),
        MATRIX,
    )
    for step in range(6)
]


def follow(tx, rate=0.0):
    """The parameters after six steps of any optimizer."""
    tx, params = optax.with_extra_args_support(tx), MATRIX
    state = tx.init(params)
    for gradient in GRADIENTS:
        updates, state = tx.update(gradient, state, params, learning_rate=rate)
        params = optax.apply_updates(params, updates)
    return params


KERNELS = {"conv": {"kernel": True, "bias": False}}
SETTINGS = {"momentum": 0.8, "beta2": 0.95, "epsilon": 0.01}
READY_MADE = {
    "sgd": (
        optax.chain(optax.add_decayed_weights(0.1, KERNELS), optax.sgd(0.3, 0.8, nesterov=True)),
        {"l2": 0.1, "nesterov": True},
    ),
    "adamw": (
        optax.adamw(0.3, 0.8, 0.95, 0.01, weight_decay=0.1, mask=KERNELS),
        {"weight_decay": 0.1},
    ),
    "lars": (
        optax.lars(
            0.3, 0.1, KERNELS, trust_coefficient=0.02, trust_ratio_mask=KERNELS, momentum=0.8
        ),
        {"l2": 0.1, "trust_coefficient": 0.02},
    ),
    "lamb": (
        optax.lamb(0.3, 0.8, 0.95, 0.01, weight_decay=0.1),
        {"weight_decay": 0.1, "undecayed": ""},
    ),
    "rmsprop": (optax.rmsprop(0.3, 0.95, 0.01, initial_scale=1.0, momentum=0.8), {}),
}


@pytest.mark.parametrize("name", READY_MADE)
def test_optimizers_are_optax_s_ready_made(name):
    """At a constant rate, it makes no difference whether the rate is inside the momentum."""
    reference, settings = READY_MADE[name]
    found = follow(make_optimizer(optimizer(name=name, **SETTINGS, **settings), MATRIX), 0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), found, follow(reference))
    assert not np.allclose(found["conv"]["kernel"], MATRIX["conv"]["kernel"], rtol=0.01)


def test_lamb_by_its_paper():
    """Algorithm 2, in plain numbers; Adam alone for biases."""
    found = follow(
        make_optimizer(optimizer(name="lamb", **SETTINGS, weight_decay=0.1), MATRIX), 0.3
    )
    for name, decayed in (("kernel", True), ("bias", False)):
        w = np.asarray(MATRIX["conv"][name], np.float64)
        m, v = np.zeros_like(w), np.zeros_like(w)
        for t, gradient in enumerate(GRADIENTS, 1):
            g = np.asarray(gradient["conv"][name], np.float64)
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            u = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 0.01)
            if decayed:
                u = u + 0.1 * w
                u = u * np.linalg.norm(w) / np.linalg.norm(u)
            w = w - 0.3 * u
        np.testing.assert_allclose(found["conv"][name], w, rtol=1e-5)


def test_rmsprop_by_tensorflow_s_formula():
    """Squares start at 1, and epsilon is inside the root."""
    found = follow(make_optimizer(optimizer(name="rmsprop", **SETTINGS), MATRIX), 0.3)
    w = np.asarray(MATRIX["conv"]["kernel"], np.float64)
    s, v = np.ones_like(w), np.zeros_like(w)
    for gradient in GRADIENTS:
        g = np.asarray(gradient["conv"]["kernel"], np.float64)
        s = 0.95 * s + 0.05 * g**2
        v = 0.8 * v + g / np.sqrt(s + 0.01)
        w = w - 0.3 * v
    np.testing.assert_allclose(found["conv"]["kernel"], w, rtol=1e-5)


def test_a_layer_of_lars_and_lamb_moves_by_its_weights_norm():
    """At the first step, for a gradient of any size: this is the purpose of the trust ratio."""
    for name, settings, share in (
        ("lars", {"trust_coefficient": 0.02}, 0.02),
        ("lamb", {"weight_decay": 0.1}, 1.0),
    ):
        tx = make_optimizer(optimizer(name=name, **settings), MATRIX)
        for size in (1e-3, 1.0, 1e3):
            gradient = jax.tree.map(lambda g, size=size: g * size, GRADIENTS[0])
            direction, _ = tx.update(gradient, tx.init(MATRIX), MATRIX, learning_rate=1.0)
            norm = np.linalg.norm(direction["conv"]["kernel"])
            assert norm == pytest.approx(share * np.linalg.norm(MATRIX["conv"]["kernel"]), rel=1e-4)


def test_gradients_are_clipped_together():
    """The norm covers all trained parameters; a frozen group does not count."""
    plain = {"momentum": 0.0, "clip_norm": 1.0}
    gradient = {
        "conv": {"kernel": jnp.array([[3.0, 0.0], [0.0, 0.0]]), "bias": jnp.array([0.0, 4.0])}
    }
    config = optimizer(**plain)

    def direction(config, gradient):
        tx = make_optimizer(config, MATRIX)
        return tx.update(gradient, tx.init(MATRIX), MATRIX, learning_rate=-1.0)[0]["conv"]

    clipped = direction(config, gradient)
    np.testing.assert_allclose([clipped["kernel"][0, 0], clipped["bias"][1]], [0.6, 0.8], rtol=1e-6)
    small = direction(config, jax.tree.map(lambda g: g / 10, gradient))
    np.testing.assert_allclose([small["kernel"][0, 0], small["bias"][1]], [0.3, 0.4], rtol=1e-6)
    config.groups.still = group("bias", frozen=True)
    frozen = direction(config, gradient)
    np.testing.assert_allclose([frozen["kernel"][0, 0], frozen["bias"][1]], [1, 0], rtol=1e-6)


@pytest.mark.parametrize("window", [(), (3,), (3, 3), (2, 2, 2)])
def test_adaptive_clipping_is_by_filter(window):
    """Each filter's gradient has at most the share of its weights' norm; the last layer is free."""
    random = np.random.default_rng(0)
    params = {
        "conv": {"kernel": random.normal(size=(*window, 4, 5)), "bias": random.normal(size=5)},
        "fc": {"kernel": random.normal(size=(5, 2))},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    axes = tuple(range(len(window) + 1))
    sizes = jnp.array([0.001, 0.01, 1.0, 100.0, 0.0])
    gradient = jax.tree.map(lambda x: x[::-1] * 100, params)
    gradient["conv"]["kernel"] = params["conv"]["kernel"] * sizes.reshape(*(1,) * len(axes), 5)

    def direction(**settings):
        tx = make_optimizer(optimizer(momentum=0.0, adaptive_clip=0.05, **settings), params)
        return tx.update(gradient, tx.init(params), params, learning_rate=-1.0)[0]

    found = direction()
    norms = [jnp.sqrt(jnp.sum(x["conv"]["kernel"] ** 2, axis=axes)) for x in (found, params)]
    np.testing.assert_allclose(norms[0] / norms[1], [0.001, 0.01, 0.05, 0.05, 0.0], rtol=1e-4)
    share = jnp.linalg.norm(found["conv"]["bias"]) / jnp.linalg.norm(params["conv"]["bias"])
    assert share == pytest.approx(0.05, rel=1e-4)
    np.testing.assert_array_equal(found["fc"]["kernel"], gradient["fc"]["kernel"])
    free = direction(adaptive_clip_except="bias")
    np.testing.assert_array_equal(free["conv"]["bias"], gradient["conv"]["bias"])
    assert jnp.linalg.norm(free["fc"]["kernel"]) < jnp.linalg.norm(gradient["fc"]["kernel"])
    with pytest.raises(UserError, match="adaptive_clip_except '\\(' is not a regular expression"):
        direction(adaptive_clip_except="(")


def rates(total=100, **schedule):
    config = optimizer(learning_rate=0.5)
    config.schedule.update(schedule)
    return np.asarray(jax.vmap(make_schedule(config, total))(jnp.arange(total)))


def test_schedules():
    np.testing.assert_allclose(rates(name="constant"), 0.5)
    step = rates(name="step", boundaries=(30, 60))
    np.testing.assert_allclose(
        step[[0, 29, 30, 59, 60, 99]], [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-6
    )
    cosine = rates(name="cosine", warmup_steps=10)
    np.testing.assert_allclose(cosine[:10], 0.05 * np.arange(1, 11), rtol=1e-6)
    np.testing.assert_allclose(
        cosine[10:], 0.25 * (1 + np.cos(np.pi * np.arange(90) / 90)), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(rates(name="plateau", warmup_steps=2)[:3], [0.25, 0.5, 0.5])
    with pytest.raises(UserError, match="warmup_steps is 100, but the training has only 100 steps"):
        rates(name="cosine", warmup_steps=100)


def test_plateau_divides_by_ten_when_validation_stops_improving():
    plateau = Plateau(jnp.ones(()), jnp.array(-jnp.inf), jnp.zeros((), jnp.int32))
    scales = []
    for accuracy in (0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.6, 0.7, 0.71):
        plateau = update_plateau(plateau, accuracy, factor=0.1, patience=2, higher_is_better=True)
        scales.append(float(plateau.scale))
    np.testing.assert_allclose(scales, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01], rtol=1e-6)
    falling = update_plateau(
        plateau.replace(best=jnp.array(-0.3)), 0.2, 0.1, 2, higher_is_better=False
    )
    assert int(falling.since) == 0 and float(falling.best) == pytest.approx(-0.2)


def test_frozen_parameters_have_no_gradient():
    """The others have the same, and the tree says which are which."""
    config = optimizer()
    config.groups.still = group("conv1", frozen=True)
    frozen = frozen_parameters(config, PARAMS)
    assert frozen == {"conv1": {"kernel": True, "bias": True}, "norm1": {"scale": False}}

    def apply(variables, x):
        params = variables["params"]
        inner = jnp.sum(params["conv1"]["kernel"]) * x + params["conv1"]["bias"]
        return jnp.sum(inner**2 * params["norm1"]["scale"])

    partly = partly_frozen(apply, frozen)
    x = jnp.array([2.0])
    whole, part = (jax.grad(lambda p, f=f: f({"params": p}, x))(PARAMS) for f in (apply, partly))
    np.testing.assert_array_equal(part["norm1"]["scale"], whole["norm1"]["scale"])
    assert not jnp.any(part["conv1"]["kernel"]) and jnp.all(whole["conv1"]["kernel"] != 0)
    np.testing.assert_array_equal(partly({"params": PARAMS}, x), apply({"params": PARAMS}, x))
