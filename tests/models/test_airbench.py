"""Airbench: whitening, the first filters, the network itself, and its start in a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv import create_model
from jaxconv.data import from_arrays
from jaxconv.models.airbench import partly_identity, whitening_filters
from jaxconv.run import train
from jaxconv.train.restore import restore_run
from tests.conftest import tiny_config

TINY = {"widths": (4, 6, 8)}


def images_of(count=40, size=12):
    """Images whose neighbouring pixels and channels are alike, as in photographs."""
    noise = np.random.default_rng(0).normal(size=(count, size + 2, size + 2, 1))
    smooth = noise[:, 2:, 2:] + noise[:, 1:-1, 1:-1] + noise[:, :-2, :-2]
    return jnp.asarray(
        smooth + 0.3 * np.random.default_rng(1).normal(size=(count, size, size, 3)), jnp.float32
    )


def test_whitened_patches_are_uncorrelated_and_have_variance_1():
    images = images_of()
    filters = whitening_filters(images, 2)
    assert filters.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(filters[..., 12:], -filters[..., :12])
    patches = np.stack(
        [images[:, y : 11 + y, x : 11 + x] for y in (0, 1) for x in (0, 1)], axis=-2
    ).reshape(-1, 12)
    values = patches @ np.asarray(filters).reshape(12, 24)[:, :12]
    np.testing.assert_allclose(values.T @ values / len(values), np.eye(12), atol=0.02)
    # The first principal component, of the largest variance, has the smallest weights.
    norms = np.linalg.norm(np.asarray(filters).reshape(12, 24), axis=0)[:12]
    assert (np.diff(norms) > 0).all()


@pytest.mark.parametrize(("channels", "filters"), [(3, 5), (5, 3), (4, 4)])
def test_the_first_filters_give_back_their_channel(channels, filters):
    kernel = partly_identity(jax.random.key(0), (3, 3, channels, filters))
    x = jax.random.normal(jax.random.key(1), (2, 6, 7, channels))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    same = min(channels, filters)
    np.testing.assert_allclose(y[..., :same], x[..., :same], rtol=1e-6)
    if filters > channels:
        rest = kernel[..., same:]
        assert 0 < jnp.abs(rest).max() <= 1 / np.sqrt(9 * channels)


@pytest.mark.parametrize(("name", "convs"), [("airbench94", 2), ("airbench96", 3)])
def test_it_is_the_network_of_the_paper(name, convs):
    """Against PyTorch's layers, put together by the paper's section 3.1, with the same weights."""
    torch = pytest.importorskip("torch")
    model = create_model(name, 10, **TINY)
    x = jax.random.normal(jax.random.key(0), (3, 32, 32, 3))
    variables = model.data_dependent_init(model.init(jax.random.key(1), x, train=False), x)
    variables = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.uniform(jax.random.key(leaf.size), leaf.shape),
        variables,
    )
    params, statistics = variables["params"], variables["batch_stats"]

    def tensor(values):
        return torch.from_numpy(np.array(values))

    def convolved(values, kernel, padding=0):
        kernel = tensor(kernel).permute(3, 2, 0, 1)
        return torch.nn.functional.conv2d(values, kernel, padding=padding)

    gelu, pool = torch.nn.functional.gelu, torch.nn.functional.max_pool2d
    kernel = variables["whitening"]["whiten"]["kernel"]
    y = gelu(convolved(tensor(x).permute(0, 3, 1, 2), kernel))
    for n in (1, 2, 3):
        group, of = params[f"group{n}"], statistics[f"group{n}"]
        for k in range(1, convs + 1):
            before = y
            y = convolved(y, group[f"conv{k}"]["kernel"], padding=1)
            y = pool(y, 2) if k == 1 else y
            mean, var = (tensor(of[f"norm{k}"][part]) for part in ("mean", "var"))
            bias = tensor(group[f"norm{k}"]["bias"])
            y = torch.nn.functional.batch_norm(y, mean, var, None, bias, eps=1e-12)
            y = gelu(before + y if k == 3 else y)
    y = pool(y, 3).flatten(1) @ tensor(params["fc"]["kernel"]) + tensor(params["fc"]["bias"])
    np.testing.assert_allclose(
        model.apply(variables, x, train=False), y.numpy() / 9, rtol=1e-4, atol=1e-4
    )


@pytest.mark.full
def test_a_run_starts_from_its_own_images(tmp_path, one_device):
    """The filters are those of the training images, stay as they are, and the averages have them;
    every member of an ensemble has the same.
    """
    bytes_ = np.clip(128 + 40 * np.asarray(images_of(64, 32)), 0, 255).astype(np.uint8)
    source = from_arrays(bytes_, np.arange(64, dtype=np.int32) % 2, ("o", "x"))
    config = tiny_config(
        model__name="airbench94",
        model__kwargs__widths=TINY["widths"],
        augment__alternating_flip=True,
        ema__decay=0.5,
        steps=3,
    )
    sources = (source, source)
    train(config, str(tmp_path / "one"), devices=one_device, sources=sources)
    state, _ = restore_run(tmp_path / "one")
    wanted = whitening_filters(jnp.asarray(bytes_ / 255 - 0.5, jnp.float32) / 0.5, 2)
    for variables in (state.model_state, state.ema):
        found = variables["whitening"]["whiten"]["kernel"]
        # Up to rotations among directions of about the same variance.
        products = [np.asarray(x).reshape(12, 24) for x in (found, wanted)]
        products = [x @ x.T for x in products]
        np.testing.assert_allclose(*products, rtol=1e-3, atol=1e-3 * np.abs(products[1]).max())
    with config.unlocked():
        config.ensemble.size = 2
    train(config, str(tmp_path / "two"), devices=one_device, sources=sources)
    state, _ = restore_run(tmp_path / "two")
    for member in state.model_state["whitening"]["whiten"]["kernel"]:
        np.testing.assert_array_equal(member, found)
