"""Residual networks for clips: shapes of their maps, strides in time, and training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxconv
from jaxconv.models import abstract_variables
from jaxconv.summary import summarize

# Frames and sides of conv1 and of the four stages' maps, for 16 frames of 112x112.
MAPS = {
    "r3d_18": [(16, 56), (16, 56), (8, 28), (4, 14), (2, 7)],
    "mc3_18": [(16, 56), (16, 56), (16, 28), (16, 14), (16, 7)],
    "r2plus1d_18": [(16, 56), (16, 56), (8, 28), (4, 14), (2, 7)],
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_the_paper_s(name):
    model = jaxconv.create_model(name, 5, dtype="bfloat16")
    clips = jax.ShapeDtypeStruct((2, 16, 112, 112, 3), jnp.float32)
    variables = abstract_variables(model, clips.shape)
    maps = jax.eval_shape(functools.partial(jaxconv.features, model), variables, clips)
    for n, (frames, side) in enumerate(MAPS[name]):
        assert maps[f"conv{n + 1}"].shape == (2, frames, side, side, 64 * 2 ** max(0, n - 1))
    logits = jax.eval_shape(functools.partial(model.apply, train=False), variables, clips)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", MAPS)
def test_multiply_adds_are_torchvision_s(name):
    """The figures beside torchvision's weights, in billions, for 16 frames."""
    summary = summarize(jaxconv.create_model(name, 400), (16, 112, 112, 3))
    published = {"r3d_18": 40.697, "mc3_18": 43.343, "r2plus1d_18": 40.519}[name]
    assert summary.total("multiply_adds") / 1e9 == pytest.approx(published, abs=6e-4)


def test_space_and_time_have_as_many_weights_as_both_together():
    """Section 3.5 of the paper: to within the rounding, for units that keep the number of maps."""
    counts = {}
    for name in ("r3d_18", "r2plus1d_18"):
        params = abstract_variables(jaxconv.create_model(name, 5), (1, 4, 16, 16, 3))["params"]
        unit = jax.tree_util.tree_leaves_with_path(params["conv3_2"])
        counts[name] = sum(leaf.size for path, leaf in unit if path[-1].key == "kernel")
    assert counts["r3d_18"] * 0.99 < counts["r2plus1d_18"] <= counts["r3d_18"]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"clips are \[N, T, H, W, C\], but these are \[1, 112"):
        abstract_variables(jaxconv.create_model("r3d_18", 5), (1, 112, 112, 3))
    with pytest.raises(ValueError, match="each must be one of 3d, 2d, 2\\+1d"):
        jaxconv.create_model("r3d_18", 5, kinds=("4d",) * 4)
    with pytest.raises(ValueError, match="has no output_stride but its own"):
        jaxconv.create_model("r3d_18", 5, output_stride=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [("3d", "2d"), pytest.param(("2+1d", "2+1d"), marks=pytest.mark.full)]
)
def test_it_learns_the_direction_of_time(kinds):
    """A dot that moves right or left: a frame alone does not tell, so the answer is in time."""
    random = np.random.default_rng(0)
    clips, labels = np.zeros((64, 4, 9, 9, 1), np.float32), np.arange(64) % 2
    for clip, label in zip(clips, labels, strict=True):
        row, start = random.integers(0, 9), random.integers(0, 5)
        for frame in range(4):
            clip[frame, row, start + (frame if label else 3 - frame)] = 2.0
    model = jaxconv.create_model("r3d_18", 2, kinds=kinds, units=(1, 1), width=8)
    optimizer = optax.adam(3e-3)
    start = jax.jit(lambda key: jaxconv.create_state(model, optimizer, key, clips[:1]))
    state = start(jax.random.key(0))
    step = jax.jit(jaxconv.make_train_step(model, optimizer))
    batch = {"image": jnp.asarray(clips[:32]), "label": jnp.asarray(labels[:32])}
    for _ in range(40):
        state, _ = step(state, batch, jax.random.key(0))
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits = apply(state.variables, clips[32:])
    assert np.mean(np.argmax(logits, -1) == labels[32:]) > 0.9
