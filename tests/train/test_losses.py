"""Losses against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.train.losses import correct, cross_entropy

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    random = np.random.default_rng(0)
    votes, label = random.normal(size=(5, 4)).astype(np.float32), np.array([0, 3, 2, 2, 1])
    probability = np.exp(votes) / np.exp(votes).sum(1, keepdims=True)
    target = np.eye(4)[label] * (1 - smoothing) + smoothing / 4
    expected = -(target * np.log(probability)).sum(1)
    np.testing.assert_allclose(cross_entropy(jnp.array(votes), jnp.array(label), smoothing), expected, rtol=1e-5)


def test_cross_entropy_of_large_votes_is_finite():
    assert cross_entropy(jnp.array([[1e4, 0.0]]), jnp.array([1]))[0] == pytest.approx(1e4)
    assert cross_entropy(jnp.array([[8.0, 0.0]], jnp.bfloat16), jnp.array([0])).dtype == jnp.float32


def test_correct():
    votes = jnp.array([[1.0, 2.0], [3.0, 2.0], [1.0, 1.0]])
    np.testing.assert_array_equal(correct(votes, jnp.array([1, 1, 0])), [1, 0, 1])
