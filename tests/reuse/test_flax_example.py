"""Flax's ImageNet example with our ResNet instead of its own: an error as it is, and training after
the three lines that docs/guides/backbones.md gives.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.conftest import ROOT

# A loop of our own around the lines of the example that meet the model: its calls of the model's
# class, of `init` and of `apply_fn` are as in its train.py of 2026, so that the page's lines apply.
EXAMPLE = """
from typing import Any
import jax, jax.numpy as jnp, jaxconv, optax
from flax.training import train_state

NUM_CLASSES = 4


class TrainState(train_state.TrainState):
  batch_stats: Any


def create_model(*, model_cls, model_dtype=jnp.float32, **kwargs):
  return model_cls(num_classes=NUM_CLASSES, dtype=model_dtype, **kwargs)


def create_train_state(key, model, image_size, learning_rate):
  @jax.jit
  def init(*args):
    return model.init(*args)

  variables = init({'params': key}, jnp.ones((1, image_size, image_size, 3), model.dtype))
  return TrainState.create(
      apply_fn=model.apply, tx=optax.sgd(learning_rate, momentum=0.9, nesterov=True), **variables)


def mean_loss(logits, batch):
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()


@jax.jit
def train_step(state, batch):
  def loss_fn(params):
    logits, new_model_state = state.apply_fn(
        {'params': params, 'batch_stats': state.batch_stats},
        batch['image'],
        mutable=['batch_stats'],
    )
    return mean_loss(logits, batch), new_model_state

  (loss, changed), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
  return state.apply_gradients(grads=grads, **changed), loss


@jax.jit
def eval_step(state, batch):
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  return mean_loss(state.apply_fn(variables, batch['image'], train=False, mutable=False), batch)
"""
# A small ResNet for the test instead of the page's ResNet-50.
PUBLISHED = 'jaxconv.create_model("resnet50", num_classes=NUM_CLASSES, '
SMALL = PUBLISHED + "units=(1, 1), width=8, "


def changes():
    """(old line, new line) of the page."""
    (diff,) = re.findall(
        r"```diff\n(.*?)```", (ROOT / "docs/guides/backbones.md").read_text(), re.DOTALL
    )
    lines = diff.splitlines()
    assert len(lines) == 6
    return [
        (old.removeprefix("-"), new.removeprefix("+"))
        for old, new in zip(lines[::2], lines[1::2], strict=True)
    ]


def example(pairs):
    """The example's names, with these lines changed."""
    text = EXAMPLE
    for old, new in pairs:
        assert text.count(old + "\n") == 1, old
        text = text.replace(old + "\n", new + "\n")
    space = {}
    exec(text.replace(PUBLISHED, SMALL), space)
    return space


def batch():
    images = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
    return {"image": images, "label": jnp.arange(8) % 4}


def test_without_the_lines_it_errs():
    model, init, call = changes()
    with pytest.raises(TypeError, match="called without `train`.*net.init"):
        space = example([model, call])
        space["create_train_state"](
            jax.random.key(0), space["create_model"](model_cls=None), 32, 0.1
        )
    space = example([model, init])
    state = space["create_train_state"](
        jax.random.key(0), space["create_model"](model_cls=None), 32, 0.1
    )
    with pytest.raises(TypeError, match=r"called without `train`.*mutable=\[\"batch_stats\"\]"):
        space["train_step"](state, batch())


def test_with_the_three_lines_it_trains():
    space = example(changes())
    state = space["create_train_state"](
        jax.random.key(0), space["create_model"](model_cls=None), 32, 0.05
    )
    before = state
    losses = []
    for _ in range(12):
        state, loss = space["train_step"](state, batch())
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    norms = [s.batch_stats["conv1"]["norm"]["mean"] for s in (before, state)]
    assert np.all(norms[0] == 0) and np.any(norms[1] != 0)
    assert np.isfinite(space["eval_step"](state, batch()))


def test_the_page_s_python_runs():
    """Every Python block of docs/guides/backbones.md, one after the other in one program."""
    text = (ROOT / "docs/guides/backbones.md").read_text()
    space = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, space)
        if "pyramid" in space and "bridged" not in space:
            assert [x.shape[1:] for x in space["maps"]] == [(16, 16, 32), (8, 8, 32), (4, 4, 32)]
    assert [*space["maps"]] == ["conv2", "conv5"] and "conv3" in space["everything"]
    count = jaxconv.summarize(space["bridged"], (64, 64, 3)).parameters
    assert f"# {count:,}" in text
