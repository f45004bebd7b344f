"""Distillation: the losses by hand, what the teacher is, and that a run with one stays exact."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.config import default_config
from jaxconv.data.loading import train_indices
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.models import create_model
from jaxconv.run import train
from jaxconv.tasks.classification.distillation import hard, soft
from jaxconv.train.build import build_network
from jaxconv.train.distill import Teacher, attention, attention_transfer, pairs_of
from jaxconv.train.initial import save_weights
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import saved_config, saved_data


def test_the_soft_loss_by_hand():
    """K = 2 at T = 2: teacher (4, 0) -> sigmoid(2); student (0, 0) -> a half each."""
    p = 1 / (1 + np.exp(-2.0))
    divergence = p * np.log(p / 0.5) + (1 - p) * np.log((1 - p) / 0.5)
    found = soft(jnp.zeros((1, 2)), jnp.array([[4.0, 0.0]]), 2.0)
    np.testing.assert_allclose(found, [4 * divergence], rtol=1e-6)
    np.testing.assert_allclose(soft(jnp.ones((1, 2)), jnp.full((1, 2), 7.0), 3.0), [0], atol=1e-7)


def test_the_gradient_of_the_soft_loss():
    """It is T (softmax(s / T) - softmax(t / T)): as in Hinton's section 2.1."""
    random = np.random.default_rng(0)
    s, t = (jnp.asarray(random.normal(size=(3, 4)), jnp.float32) for _ in range(2))
    found = jax.grad(lambda s: jnp.sum(soft(s, t, 5.0)))(s)
    expected = 5 * (jax.nn.softmax(s / 5) - jax.nn.softmax(t / 5))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_hard_loss_by_hand():
    found = hard(jnp.array([[1.0, 2.0, 0.0]]), jnp.array([[3.0, 1.0, 2.0]]))
    np.testing.assert_allclose(found, [np.log(np.exp([0, 1, -1]).sum())], rtol=1e-6)


@pytest.mark.parametrize("loss", [lambda s, t: soft(s, t, 2.0), hard])
def test_no_gradient_reaches_the_teacher(loss):
    s, t = jnp.arange(6.0).reshape(2, 3), jnp.arange(6.0)[::-1].reshape(2, 3)
    assert not jnp.any(jax.grad(lambda t: jnp.sum(loss(s, t)))(t))
    maps = jnp.arange(48.0).reshape(2, 2, 4, 3)
    taught = jax.grad(lambda other: jnp.sum(attention_transfer(maps, other)))(1 - maps)
    assert not jnp.any(taught)


def test_attention_by_hand():
    """A map of 1 x 2 positions with 2 channels: (3, 4) and (0, 0); and its transfer."""
    one = jnp.array([[[[3.0, 4.0], [0.0, 0.0]]]])
    np.testing.assert_allclose(attention(one), [[1, 0]])
    other = jnp.array([[[[0.0], [2.0]]]])  # of another width
    np.testing.assert_allclose(attention_transfer(one, other), [1])  # (1 + 1) / 2
    np.testing.assert_allclose(attention_transfer(one, 5 * one), [0], atol=1e-12)
    larger = jnp.repeat(jnp.repeat(other, 4, axis=1), 4, axis=2)  # of another size
    assert attention_transfer(one, larger).shape == (1,)
    zero = jax.grad(lambda x: jnp.sum(attention_transfer(x, other)))(jnp.zeros_like(one))
    assert jnp.all(jnp.isfinite(zero))


def test_pairs():
    assert pairs_of("conv4:conv5 pool") == (("conv4", "conv5"), ("pool", "pool"))
    with pytest.raises(UserError, match="pairs STUDENT:TEACHER"):
        pairs_of("a:b:c")


def settings(steps=4, **distill):
    config = default_config()
    config.data.xo.size, config.data.xo.train_examples, config.data.xo.test_examples = 16, 32, 16
    config.model.kwargs = {"filters": (4, 4)}
    config.steps, config.batch_size, config.eval.batch_size = steps, 8, 8
    config.log.every, config.checkpoint.every, config.log.report = 1, 2, False
    config.log.tensorboard = False
    config.distill.update(distill)
    return config


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher with wider maps, trained for a few steps on images of another normalisation."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    config = settings()
    config.model.kwargs, config.data.mean = {"filters": (6, 8)}, (0.25,)
    train(config, folder)
    return str(folder)


def weights_of(folder):
    return jax.device_get(restore_run(folder)[0].params)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def features():
    return {"features": "conv2_1", "feature_weight": 0.5}


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_run_resumes_to_the_bit(taught, tmp_path, kind):
    given = {"teacher": taught, "kind": kind, **features()}
    train(settings(**given), tmp_path / "whole")
    train(settings(2, **given), tmp_path / "parts")
    train(settings(4, **given), tmp_path / "parts")
    same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    record = saved_data(tmp_path / "whole")["teacher"]
    assert record["what"] == "step 4 of a run" and len(record["digest"]) == 8
    train(settings(), tmp_path / "alone")
    alone = weights_of(tmp_path / "alone")
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), alone, weights_of(tmp_path / "whole"))
    assert all(jax.tree.leaves(differs))


def test_pmap_and_accumulation_agree_with_jit(taught, tmp_path):
    results = []
    for name, parallel, accumulate in (("a", "jit", 1), ("b", "pmap", 1), ("c", "jit", 2)):
        config = settings(teacher=taught, **features())
        config.parallel, config.accumulate = parallel, accumulate
        train(config, tmp_path / name)
        results.append(weights_of(tmp_path / name))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), results[0], other)


def test_several_students_have_one_teacher(taught, tmp_path):
    config = settings(teacher=taught)
    config.ensemble.size, config.ensemble.by = 2, "vmap"
    train(config, tmp_path / "both")
    first = jax.tree.map(lambda x: x[0], weights_of(tmp_path / "both"))
    train(settings(teacher=taught), tmp_path / "one")
    same_enough = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)  # noqa: E731
    jax.tree.map(same_enough, first, weights_of(tmp_path / "one"))


def test_the_teacher_sees_images_as_it_was_trained():
    """Its mean and deviation: (x s + m - m') / s'."""
    seen = Teacher(None, {}, np.float32([0.5 / 0.25]), np.float32([(0.5 - 0.25) / 0.25]), (), "")
    x = (np.float32(0.75) - 0.5) / 0.5  # a value of 0.75
    np.testing.assert_allclose(x * seen.scale + seen.shift, [(0.75 - 0.25) / 0.25])


def test_the_loss_of_a_step(taught, tmp_path):
    """The logged loss of the first step is the sum by hand of what both networks say."""
    config = settings(1, teacher=taught, alpha=0.25, temperature=2.0)
    config.log.every = 1
    train(config, tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    source = open_source(config.data, "train")
    index = train_indices(config.seed, 0, 8, 32)
    images = np.stack([source.read(int(i))["image"] for i in index]).astype(np.float32)
    images = images / 255 if images.max() > 1.5 else images
    labels = np.array([int(source.read(int(i))["label"]) for i in index])
    student = build_network(config, saved_data(tmp_path / "run"))
    state = student.init(jax.random.key(config.seed))
    teacher = restore_run(Path(taught))[0]
    other = build_network(saved_config(Path(taught)), saved_data(Path(taught)))
    s = student.model.apply(state.variables, (images - 0.5) / 0.5, train=False)
    t = other.model.apply(teacher.variables, (images - 0.25) / 0.5, train=False)
    own = -jax.nn.log_softmax(s)[np.arange(8), labels]
    expected = jnp.mean(0.75 * own + 0.25 * soft(s, t, 2.0))
    np.testing.assert_allclose(rows[0]["train/loss"], expected, rtol=1e-4)


def test_weights_teach_too(taught, tmp_path):
    model = create_model("resnet20_cifar", 2)
    variables = jax.jit(lambda key, x: model.init(key, x, train=False))(
        jax.random.key(3), np.zeros((1, 16, 16, 1), np.float32)
    )
    save_weights(str(tmp_path / "weights"), "resnet20_cifar", variables, "random")
    train(settings(2, teacher=str(tmp_path / "weights")), tmp_path / "run")
    assert saved_data(tmp_path / "run")["teacher"]["what"].startswith("weights of resnet20_cifar")


def test_another_teacher_is_another_run(taught, tmp_path):
    train(settings(2, teacher=taught), tmp_path / "run")
    file = tmp_path / "run" / "data.json"
    data = json.loads(file.read_text())
    data["teacher"]["digest"] = "00000000"
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match="has changed since the run began: teacher was"):
        train(settings(4, teacher=taught), tmp_path / "run")


def _detector(config):
    config.task.name, config.data.source = "localization", "xo_boxes"


def _other_classes(config):
    config.data.source = "tones"


def _other_maps(config):
    config.distill.features = "conv2_1:conv7"


def _no_maps(config):
    config.distill.features = "cnov2"


def _flat(config):
    config.distill.features = "conv2_1:logits"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_detector, "cannot learn from a teacher"),
        (_other_classes, "its classes are"),
        (_other_maps, "conv7"),
        (_no_maps, "cnov2"),
        (_flat, "both must be maps"),
        (lambda config: config.distill.update(teacher="/nowhere"), "is no file or folder"),
        (lambda config: config.distill.update(kind="medium"), "did you mean|must be one of"),
        (lambda config: config.distill.update(alpha=1.5), "at most 1"),
        (lambda config: config.distill.update(kind="hard", temperature=2.0), "no temperature"),
        (lambda config: config.distill.update(feature_weight=2.0), "no distill.features"),
        (lambda config: config.distill.update(teacher="", alpha=0.3), "no distill.teacher"),
    ],
)
def test_a_bad_teacher_is_one_line(taught, tmp_path, change, message):
    config = settings(teacher=taught)
    change(config)
    with pytest.raises(UserError, match=message) as raised:
        train(config, tmp_path / "run")
    assert "\n" not in str(raised.value) and not (tmp_path / "run" / "config.json").exists()
