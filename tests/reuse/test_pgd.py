"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083): an attack on a network.

The gradient goes to the images, from 0 to 1, through the normalisation and the network.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxconv
from jaxconv.data.augment import normalise
from jaxconv.data.xo import draw_split

EPSILON, STEP, STEPS = 0.25, 0.05, 10


def preprocess(images):
    return normalise({"image": images}, mean=(0.5,), std=(0.25,))["image"]


def trained(model, images, labels):
    """The variables after a short training on all images at once."""
    optimizer = optax.adam(3e-3)
    state = jaxconv.create_state(model, optimizer, jax.random.key(0), images[:1])
    step = jax.jit(jaxconv.make_train_step(model, optimizer))
    for _ in range(25):
        batch = {"image": preprocess(images), "label": labels}
        state, metrics = step(state, batch, jax.random.key(0))
    return state.variables


def pgd(model, variables, images, labels, key):
    """Images [N, H, W, C] within EPSILON of the given ones, on which the loss is as large as ten
    steps make it; and the mean loss before each step.
    """

    def loss_fn(images):
        logits = model.apply(variables, preprocess(images), train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    def step(attacked, _):
        loss, slope = jax.value_and_grad(loss_fn)(attacked)
        attacked = attacked + STEP * jnp.sign(slope)
        attacked = jnp.clip(attacked, images - EPSILON, images + EPSILON)
        return jnp.clip(attacked, 0, 1), loss / len(images)

    start = images + jax.random.uniform(key, images.shape, minval=-EPSILON, maxval=EPSILON)
    return jax.lax.scan(step, jnp.clip(start, 0, 1), None, length=STEPS)


def test_an_attack_fools_a_network_that_noise_does_not():
    drawn = draw_split("train", 16, train_examples=64, rotation=20)
    images, labels = jnp.float32(drawn.images) / 255, drawn.labels
    model = jaxconv.create_model("resnet20_cifar", num_classes=2, units=(1, 1))
    variables = trained(model, images, labels)
    attacked, losses = jax.jit(pgd, static_argnums=0)(
        model, variables, images, labels, jax.random.key(1)
    )
    assert jnp.abs(attacked - images).max() <= EPSILON + 1e-6
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert losses[-1] > 3 * losses[0]

    def right(images):
        logits = model.apply(variables, preprocess(images), train=False)
        return float(jnp.mean(logits.argmax(-1) == labels))

    noise = EPSILON * jax.random.rademacher(jax.random.key(2), images.shape, jnp.float32)
    assert right(images) == 1 and right(attacked) < 0.2
    assert right(jnp.clip(images + noise, 0, 1)) > 0.9


def test_the_gradient_to_the_image_is_that_of_the_normalised_one_over_std():
    """In bytes, from 0 to 1, and normalised: the same logits; the slopes differ by 1/std."""
    drawn = draw_split("train", 16, train_examples=4, noise=0.3)
    model = jaxconv.create_model("chain", num_classes=2, filters=(4,))
    images = jnp.float32(drawn.images) / 255
    variables = model.init(jax.random.key(0), images, train=False)

    def logit(x):
        return model.apply(variables, x, train=False)[:, 1].sum()

    np.testing.assert_allclose(preprocess(images), preprocess(drawn.images), rtol=1e-6, atol=1e-6)
    slope = jax.grad(lambda x: logit(preprocess(x)))(images)
    np.testing.assert_allclose(slope, jax.grad(logit)(preprocess(images)) / 0.25, rtol=1e-5)
    assert np.abs(slope).max() > 0
