"""Losses against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.tasks.classification.losses import binary_cross_entropy, correct, cross_entropy

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    random = np.random.default_rng(0)
    logits, label = random.normal(size=(5, 4)).astype(np.float32), np.array([0, 3, 2, 2, 1])
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = np.eye(4)[label] * (1 - smoothing) + smoothing / 4
    expected = -(target * np.log(probability)).sum(1)
    np.testing.assert_allclose(
        cross_entropy(jnp.array(logits), jnp.array(label), smoothing), expected, rtol=1e-5
    )


def test_cross_entropy_of_large_logits_is_finite():
    assert cross_entropy(jnp.array([[1e4, 0.0]]), jnp.array([1]))[0] == pytest.approx(1e4)
    assert cross_entropy(jnp.array([[8.0, 0.0]], jnp.bfloat16), jnp.array([0])).dtype == jnp.float32


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_labels_of_another_shape_or_type_are_an_error(loss):
    """Labels [N, 1], as Keras has them, would be broadcast as shares."""
    logits = jnp.zeros((3, 4))
    for label in (jnp.zeros((3, 1), jnp.int32), jnp.zeros(3), jnp.zeros((3, 5)), jnp.array(1)):
        with pytest.raises(ValueError, match=r"integer labels \[3\] or class shares \[3, 4\]"):
            loss(logits, label)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_a_label_that_is_no_class_has_no_loss(loss):
    found = loss(jnp.zeros((4, 3)), jnp.array([-1, 0, 2, 3]))
    assert jnp.isnan(found).tolist() == [True, False, False, True]


def test_correct():
    logits = jnp.array([[1.0, 2.0], [3.0, 2.0], [1.0, 1.0]])
    np.testing.assert_array_equal(correct(logits, jnp.array([1, 1, 0])), [1, 0, 1])


def test_binary_cross_entropy_is_the_mean_over_independent_classes():
    random = np.random.default_rng(0)
    logits, label = random.normal(size=(5, 4)).astype(np.float32), np.array([0, 3, 2, 2, 1])
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))

    def expected(target):
        return -(target * np.log(probability) + (1 - target) * np.log(1 - probability)).mean(1)

    one_hot = np.eye(4)[label]
    np.testing.assert_allclose(
        binary_cross_entropy(jnp.array(logits), jnp.array(label)), expected(one_hot), rtol=1e-5
    )
    smooth = binary_cross_entropy(jnp.array(logits), jnp.array(label), 0.1)
    np.testing.assert_allclose(smooth, expected(0.9 * one_hot + 0.1 / 4), rtol=1e-5)
    shares = np.array([[0.7, 0.3, 0, 0]] * 5, np.float32)
    for threshold, counted in ((0.0, shares), (0.2, [[1, 1, 0, 0]] * 5), (0.5, [[1, 0, 0, 0]] * 5)):
        found = binary_cross_entropy(jnp.array(logits), jnp.array(shares), threshold=threshold)
        np.testing.assert_allclose(found, expected(np.array(counted)), rtol=1e-5)
    assert binary_cross_entropy(jnp.array([[1e4, -1e4]], jnp.bfloat16), jnp.array([1]))[
        0
    ] == pytest.approx(1e4, rel=0.01)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_a_label_is_a_target_with_one_share(loss):
    random = np.random.default_rng(0)
    logits, label = jnp.array(random.normal(size=(5, 4)), jnp.float32), jnp.array([0, 3, 2, 2, 1])
    one_hot, other = jnp.eye(4)[label], jnp.eye(4)[label[::-1]]
    np.testing.assert_allclose(loss(logits, label, 0.1), loss(logits, one_hot, 0.1), rtol=1e-6)
    mixed = loss(logits, jnp.float32(0.7) * one_hot + jnp.float32(0.3) * other)
    np.testing.assert_allclose(
        mixed, 0.7 * loss(logits, one_hot) + 0.3 * loss(logits, other), rtol=1e-5
    )


def test_correct_counts_the_larger_share():
    logits = jnp.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    shares = jnp.array([[0.4, 0.6, 0.0], [0.3, 0.7, 0.0], [0.0, 0.5, 0.5]])
    np.testing.assert_array_equal(correct(logits, shares), [1, 0, 0])
