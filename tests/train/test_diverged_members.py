"""A member of an ensemble that diverges on some examples is left out of all: the result does not
depend on the batch size, the devices, or on an earlier evaluation.
"""

import functools
from types import SimpleNamespace

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.data.interface import Arrays
from jaxconv.data.loading import ResidentLoader
from jaxconv.evaluation.evaluation import _measured_again
from jaxconv.tasks.classification.losses import average_logits
from jaxconv.tasks.labels import LabelMeasure
from jaxconv.tasks.task import _finite_mean
from jaxconv.train.ensemble import Members, over_members
from jaxconv.train.evaluate import evaluate, evaluate_each, member_mask
from jaxconv.train.parallel import make_parallel
from jaxconv.train.step import MEMBER_MASK, make_eval_step

CLASSES = 3
MEMBERS = Members(("a", "b", "c"), (0, 1, 2), {}, False)


class Steep(nn.Module):
    """Logits that overflow for bright images, if the member is steep."""

    @nn.compact
    def __call__(self, x, train=False):
        steepness = self.param("steepness", nn.initializers.zeros, ())
        brightness = x.mean(axis=(1, 2, 3))[:, None]
        return jnp.exp(steepness * brightness) * jnp.arange(1.0, CLASSES + 1)[None]


@flax.struct.dataclass
class State:
    variables: dict


def ensemble(steepness):
    return State({"params": {"steepness": jnp.array(steepness, jnp.float32)}})


def source(bright=5):
    images = np.full((40, 2, 2, 1), 0.1, np.float32)
    images[:bright] = 1.0
    return Arrays(images, np.arange(40, dtype=np.int32) % CLASSES, ("x", "y", "z"), kind="signal")


def measured(steepness, mode="jit", devices=1, batch_size=8, each=False, before=None):
    parallel = make_parallel(mode, jax.devices()[:devices])
    over = functools.partial(over_members, form="unroll", axes=(0, None))
    step = make_eval_step(Steep(), axis_name=parallel.axis_name, over=over, each=each)

    def on_indices(state, data, batch):
        data = dict(data)
        mask = {MEMBER_MASK: data.pop(MEMBER_MASK)}
        taken = {name: values[batch["index"]] for name, values in data.items()}
        return step(state, batch | taken | mask)

    state = ensemble(steepness)
    compiled = parallel.compile_eval(on_indices, state, each=each)
    data = ResidentLoader(source(), parallel)
    run = evaluate_each if each else evaluate
    return run(
        compiled, parallel, parallel.to_steps(state), data, batch_size, MEMBERS, before=before
    )


@pytest.mark.parametrize(("mode", "devices"), [("jit", 1), ("jit", 4), ("pmap", 4)])
def test_a_member_is_left_out_of_all_batches_or_of_none(mode, devices):
    alone = measured([1.0, 1.0, 2.0])
    assert [("loss" in member) for member in alone["members"]] == [True] * 3
    wanted = None
    for batch_size in (4, 8, 12, 40):
        found = measured([1.0, 200.0, 2.0], mode, devices, batch_size)
        assert [("loss" in member) for member in found["members"]] == [True, False, True]
        two = {name: value for name, value in found.items() if name != "members"}
        wanted = wanted or two
        assert two == pytest.approx(wanted, rel=1e-6)
    # The combined prediction is that of the two others, over all examples.
    logits = [np.exp(s * np.r_[[1.0] * 5, [0.1] * 35])[:, None] * [[1, 2, 3]] for s in (1, 2)]
    joint = np.mean([np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in logits], axis=0)
    loss = -np.log(joint[np.arange(40), np.arange(40) % 3]).mean()
    assert wanted["ensemble_loss"] == pytest.approx(loss, rel=1e-4)


def test_an_earlier_result_saves_the_second_pass_and_changes_nothing(monkeypatch):
    import jaxconv.train.evaluate as module

    passes, batches = [], module._batches
    monkeypatch.setattr(module, "_batches", lambda *a: passes.append(1) or batches(*a))
    steep = [1.0, 200.0, 2.0]
    found = measured(steep)
    assert len(passes) == 2
    assert measured(steep, before=found) == found and len(passes) == 3
    # A member that has diverged before and no longer does takes part again.
    healthy = measured([1.0, 1.0, 2.0])
    assert len(passes) == 4
    assert measured([1.0, 1.0, 2.0], before=found)["ensemble_loss"] == healthy["ensemble_loss"]


def test_where_all_have_diverged_there_is_nothing_to_combine():
    found = measured([200.0, 200.0, 200.0])
    assert found["members"] == [{"name": name} for name in "abc"]
    assert not np.isfinite(found["ensemble_loss"])
    assert member_mask(found, MEMBERS).tolist() == [1, 1, 1] == member_mask(None, MEMBERS).tolist()


def test_what_is_kept_of_each_example_is_combined_alike():
    result, kept = measured([1.0, 200.0, 2.0], each=True)
    expected = average_logits(jnp.asarray(kept["logits"][:, [0, 2]].swapaxes(0, 1)))
    np.testing.assert_allclose(kept["ensemble_logits"], expected, rtol=1e-5)
    # And over several passes, whose outputs are joined, in batches of any size.
    network = SimpleNamespace(
        task=SimpleNamespace(
            kept_outputs="logits",
            sums=LabelMeasure().sums,
            combine=LabelMeasure().combine,
            finish=lambda sums, examples, kept=None: {k: v / examples for k, v in sums.items()},
        ),
        members=MEMBERS,
    )
    each = [{"logits": kept["logits"][:, n], "label": source().labels} for n in range(3)]
    for size in (3, 7, 40):
        config = SimpleNamespace(eval=SimpleNamespace(batch_size=size))
        again = _measured_again([*each, each[0]], config, network)
        assert again["ensemble_loss"] == pytest.approx(result["ensemble_loss"], rel=1e-5)


def test_a_member_without_probabilities_of_an_example_is_left_out_of_it():
    logits = jnp.array([[[0.0, 1.0], [2.0, -jnp.inf]], [[jnp.nan, 0.0], [0.0, 0.0]]])
    found = jax.nn.softmax(average_logits(logits))
    half = (1 + 0.5) / 2
    np.testing.assert_allclose(found, [[0.26894143, 0.7310586], [half, 1 - half]], rtol=1e-5)
    numbers = jnp.array([[[1.0], [2.0]], [[3.0], [jnp.nan]]])
    np.testing.assert_array_equal(_finite_mean(numbers), [[2.0], [2.0]])
    np.testing.assert_array_equal(_finite_mean(numbers[..., 0]), [2.0, 2.0])
