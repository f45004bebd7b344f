"""`make_eval_step` in a loop of one's own: variables in, sums out."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxconv
from jaxconv.data.augment import normalise

BATCH = 8
images = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 3), np.uint8)
labels = np.arange(21) % 10
network = jaxconv.create_model("resnet20_cifar", num_classes=10, units=(1,), width=8)
variables = network.init(jax.random.key(0), np.zeros((1, 8, 8, 3)), train=False)


def preprocess(batch):
    return normalise(batch, mean=(0.5,), std=(0.25,))


def wanted():
    """The mean loss, and the top-1 and top-5 accuracy, of all images at once in numpy."""
    x = (np.float32(images) / 255 - 0.5) / 0.25
    logits = np.float64(network.apply(variables, x, train=False))
    own = logits[np.arange(21), labels]
    place = (logits > own[:, None]).sum(-1)
    loss = np.log(np.exp(logits).sum(-1)) - own
    return {"loss": loss.mean(), "top1": np.mean(place < 1), "top5": np.mean(place < 5)}


def test_a_loop_with_a_short_last_batch():
    """The last batch is smaller; no mask is needed."""
    step = jax.jit(jaxconv.make_eval_step(network, preprocess=preprocess))
    totals = {}
    for start in range(0, 21, BATCH):
        rows = slice(start, start + BATCH)
        sums = step(variables, {"image": images[rows], "label": labels[rows]})
        totals = {name: totals.get(name, 0) + value for name, value in sums.items()}
    assert totals.pop("examples") == 21
    found = {name: total / 21 for name, total in totals.items()}
    assert found.keys() == wanted().keys()
    for name, value in wanted().items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)


def test_a_padded_batch_counts_what_its_mask_says():
    step = jax.jit(jaxconv.make_eval_step(network, preprocess=preprocess))
    padded = {"image": np.zeros((24, 8, 8, 3), np.uint8), "label": np.zeros(24, np.int32)}
    padded["image"][:21], padded["label"][:21] = images, labels
    sums = step(variables, padded | {"mask": np.float32(np.arange(24) < 21)})
    assert sums["examples"] == 21
    for name, value in wanted().items():
        np.testing.assert_allclose(sums[name] / 21, value, rtol=1e-4)


def test_metrics_of_one_s_own():
    def confidence(logits, label):
        return jax.nn.softmax(logits).max(-1)

    step = jaxconv.make_eval_step(network, metrics={"confidence": confidence})
    sums = step(variables, {"image": jnp.float32(images), "label": labels})
    logits = network.apply(variables, jnp.float32(images), train=False)
    np.testing.assert_allclose(sums["confidence"], confidence(logits, labels).sum(), rtol=1e-4)
