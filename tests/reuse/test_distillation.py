"""Distillation (Hinton et al. 2015, arXiv:1503.02531): a small student learns a teacher's logits.

The teacher is frozen: its logits are an entry of the batch. The objective of `make_train_step` is
the KL divergence at a temperature.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxconv
from jaxconv.data.xo import draw_split

TEMPERATURE, BATCH = 4.0, 32


def data(split):
    drawn = draw_split(split, 16, train_examples=256, test_examples=64, rotation=20, noise=0.3)
    return np.float32(drawn.images) / 127.5 - 1, drawn.labels


def train(model, steps, seed, teach=None, **settings):
    """The state after some steps, and the metrics of each."""
    images, labels = data("train")
    optimizer = optax.adam(3e-3)
    state = jaxconv.create_state(model, optimizer, jax.random.key(seed), images[:1])
    step, metrics = jax.jit(jaxconv.make_train_step(model, optimizer, **settings)), []
    for number in range(steps):
        rows = np.arange(number * BATCH, (number + 1) * BATCH) % len(images)
        batch = {"image": images[rows], "label": labels[rows]}
        if teach is not None:
            batch["teacher"] = teach(batch["image"])
        state, values = step(state, batch, jax.random.key(seed))
        metrics.append(values)
    return state, metrics


def divergence(logits, batch):
    """T^2 KL(teacher || student) at temperature T, [B], and whether both say the same class."""
    teacher = jax.nn.log_softmax(batch["teacher"] / TEMPERATURE)
    student = jax.nn.log_softmax(logits / TEMPERATURE)
    agree = (logits.argmax(-1) == batch["teacher"].argmax(-1)).astype(jnp.float32)
    kl = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    return TEMPERATURE**2 * kl, {"agreement": agree}


def test_a_student_learns_a_teacher_s_logits():
    big = jaxconv.create_model("resnet20_cifar", num_classes=2, units=(1, 1))
    small = jaxconv.create_model("chain", num_classes=2, filters=(8, 8), batch_norm=True)
    teacher, _ = train(big, 20, seed=0)
    frozen = jax.tree.map(np.array, teacher.variables)
    teach = jax.jit(lambda x: big.apply(teacher.variables, x, train=False))
    student, metrics = train(small, 60, seed=1, teach=teach, objective=divergence)
    assert metrics[-1]["loss"] < 0.1 * metrics[0]["loss"] and metrics[-1]["agreement"] > 0.95
    jax.tree.map(np.testing.assert_array_equal, frozen, teacher.variables)

    images, labels = data("test")
    taught, wanted = (
        np.asarray(model.apply(state.variables, images, train=False))
        for model, state in ((small, student), (big, teacher))
    )
    assert np.mean(taught.argmax(-1) == wanted.argmax(-1)) > 0.9
    assert np.mean(taught.argmax(-1) == labels) > 0.9
    assert np.corrcoef(taught[:, 0] - taught[:, 1], wanted[:, 0] - wanted[:, 1])[0, 1] > 0.9


def test_the_first_loss_is_the_divergence_of_the_first_batch():
    model = jaxconv.create_model("chain", num_classes=2, filters=(4,))
    logits = np.random.default_rng(0).normal(size=(BATCH, 2)).astype(np.float32)
    _, metrics = train(model, 1, seed=1, teach=lambda _: logits, objective=divergence)
    images, _ = data("train")
    state, _ = train(model, 0, seed=1)
    own = model.apply(state.variables, images[:BATCH], train=False)
    p, q = (np.exp(x / TEMPERATURE) for x in (np.float64(logits), np.float64(own)))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    wanted = TEMPERATURE**2 * np.mean(np.sum(p * np.log(p / q), -1))
    np.testing.assert_allclose(metrics[0]["loss"], wanted, rtol=1e-4)
