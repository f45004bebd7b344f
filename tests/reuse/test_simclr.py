"""SimCLR (Chen et al. 2020, arXiv:2002.05709): features from pictures without labels.

Two random views of each picture by our augmentations, our ResNet as the encoder inside of an own
module, and the loss NT-Xent.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxconv
from jaxconv.data.augment import normalise
from jaxconv.data.contrastive import blur, grey
from jaxconv.data.randaugment import colour_jitter
from jaxconv.data.spatial import flip, random_resized_crop
from jaxconv.data.xo import draw_split

TEMPERATURE, BATCH, STEPS = 0.2, 32, 100


class SimCLR(nn.Module):
    """The encoder's features [N, C], and their projections [N, 16]."""

    @nn.compact
    def __call__(self, x, train):
        encoder = jaxconv.create_model("resnet20_cifar", num_classes=0, units=(1, 1))
        features = encoder.copy(name="encoder")(x, train=train)
        return features, nn.Dense(16)(nn.relu(nn.Dense(32)(features)))


def view(key, images):
    """One random view of each image [N, H, W, 3] uint8, normalised."""
    keys = jax.random.split(key, 5)
    batch = {"image": images, "position": jnp.arange(len(images))}
    batch = random_resized_crop(keys[0], batch, scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3))
    batch = flip(keys[1], batch)
    batch = colour_jitter(keys[2], batch, 0.6, 0.6, 0.6, 0.1, probability=0.8)
    batch = blur(keys[3], grey(keys[4], batch, 0.2), 0.5, sigma=(0.1, 1.0))
    return normalise(batch, mean=(0.5,), std=(0.25,))["image"]


def nt_xent(z):
    """The loss of projections [2N, D], where row i and row i + N are views of the same picture."""
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    similar = z @ z.T / TEMPERATURE - 1e9 * jnp.eye(len(z))
    partner = jnp.roll(jnp.arange(len(z)), len(z) // 2)
    return optax.softmax_cross_entropy_with_integer_labels(similar, partner).mean()


def nearest_neighbour(features, labels, others, wanted):
    """The share of `others` whose nearest of `features`, by cosine, has their label."""
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (features, others))
    return np.mean(labels[np.argmax(b @ a.T, axis=-1)] == wanted)


def pictures(split):
    """X's and O's [N, 16, 16, 3] uint8, and their labels, which training does not see."""
    sizes = {"train_examples": 256, "test_examples": 128, "channels": 3}
    variation = {"translation": 0.15, "rotation": 45, "scaling": 0.2, "weight": 0.3}
    drawn = draw_split(split, 16, **sizes, **variation)
    return drawn.images, drawn.labels


def test_two_views_of_a_picture_come_together_and_classes_apart():
    (images, labels), (test_images, test_labels) = pictures("train"), pictures("test")
    model, optimizer = SimCLR(), optax.adam(3e-3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    opt_state = optimizer.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, key, images):
        views = jnp.concatenate([view(k, images) for k in jax.random.split(key)])

        def loss_fn(params):
            (_, z), state = model.apply(
                {**variables, "params": params}, views, train=True, mutable=["batch_stats"]
            )
            return nt_xent(z), state

        (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **state}, opt_state, loss

    def encode(images):
        x = normalise({"image": images}, mean=(0.5,), std=(0.25,))["image"]
        return np.asarray(model.apply(variables, x, train=False)[0])

    def score():
        return nearest_neighbour(encode(images), labels, encode(test_images), test_labels)

    losses, before = [], score()
    for number in range(STEPS):
        rows = np.random.default_rng(number).choice(len(images), BATCH, replace=False)
        key = jax.random.fold_in(jax.random.key(1), number)
        variables, opt_state, loss = step(variables, opt_state, key, images[rows])
        losses.append(float(loss))
    assert abs(losses[0] - np.log(2 * BATCH - 1)) < 0.5  # at first all are alike
    assert np.mean(losses[-10:]) < 0.85 * losses[0]
    assert before < 0.9 and score() > 0.93


def test_the_loss_of_known_projections():
    apart = jnp.eye(4)[jnp.array([0, 1, 0, 1])]  # two pictures, each view exactly alike
    wanted = np.log(np.exp(1 / TEMPERATURE) + 2) - 1 / TEMPERATURE
    np.testing.assert_allclose(nt_xent(apart), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(nt_xent(jnp.ones((6, 3))), np.log(5), rtol=1e-5)


def test_views_of_a_picture_differ_and_depend_on_its_position_alone():
    images, _ = pictures("train")
    one, other = (np.asarray(view(jax.random.key(n), images[:8])) for n in range(2))
    assert (np.abs(one - other).max(axis=(1, 2, 3)) > 0.1).all()
    np.testing.assert_array_equal(one, view(jax.random.key(0), images[:8]))
