"""A custom task, from training to predictions, under every way of running it; and tasks that use
more of the interface: sums of any shape, values returned for each example.
"""

import json
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxconv.config import load_config, set_key
from jaxconv.data import Arrays, Target
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.look.opened import open_run
from jaxconv.predict import find_items, predict_items
from jaxconv.report.write import report
from jaxconv.run import train
from jaxconv.tasks import Figure, Task, find_task, open_task
from jaxconv.tasks.task import bootstrap_means, masked_sum
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import read_metrics
from jaxconv.weights.export import export_workdir, load_exported, load_run
from tests.conftest import ROOT, assert_one_line_error, command, command_line, process_settings

SETTINGS = {
    "log.progress": "False",
    "log.tensorboard": "False",
    "log.report": "False",
    "data.toy.train_examples": "64",
    "data.toy.test_examples": "30",
    "batch_size": "16",
    "eval.batch_size": "16",
    "epochs": "0",
    "steps": "8",
    "eval.every": "4",
    "checkpoint.every": "4",
    "log.every": "2",
    "model.kwargs.filters": "4,8",
    "optimizer.schedule.name": "constant",
}


def angle_config(path=ROOT / "experiments" / "own_task.py", **changes):
    config = load_config(str(path))
    changes = {key.replace("__", "."): str(value) for key, value in changes.items()}
    for key, text in {**SETTINGS, **changes}.items():
        set_key(config, key, text)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on one device, from a copy of the file that is gone afterwards."""
    root = tmp_path_factory.mktemp("angle")
    shutil.copy(ROOT / "experiments" / "own_task.py", root / "own_task.py")
    config = angle_config(root / "own_task.py", steps=120)
    result = train(config, str(root / "run"), devices=jax.devices()[:1])
    (root / "own_task.py").unlink()
    return root / "run", result


def test_it_learns(trained):
    folder, result = trained
    rows = read_metrics(folder)
    assert result["examples"] == 30 and result["error"] == rows[-1]["eval/error"]
    assert rows[-1]["eval/error"] < 12 < rows[0]["train/error"]  # untrained it is 20 degrees off


@pytest.mark.parametrize("mode", ["jit", "pmap", "fsdp"])
def test_devices_agree_and_a_stopped_run_ends_with_the_same_bits(tmp_path, mode):
    one = train(angle_config(), str(tmp_path / "one"), devices=jax.devices()[:1])
    four = train(angle_config(parallel=mode), str(tmp_path / "four"))
    assert four["error"] == pytest.approx(one["error"], rel=1e-4)
    train(angle_config(parallel=mode, steps=4), str(tmp_path / "stopped"))
    again = train(angle_config(parallel=mode), str(tmp_path / "stopped"))
    assert again == four
    for name in ("four", "stopped"):
        assert [row["step"] for row in read_metrics(tmp_path / name) if "eval/error" in row]
    states = [restore_run(tmp_path / name)[0] for name in ("four", "stopped")]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.full
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    overrides = [f"--config.{key}={text}" for key, text in (SETTINGS | {"steps": "400"}).items()]
    arguments = ("train", "--config=experiments/own_task.py", *overrides)
    settings = process_settings() | {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = command_line(*arguments, f"--workdir={tmp_path / 'killed'}")
    with subprocess.Popen(killed, **settings) as process:
        end = time.monotonic() + 200
        while not (tmp_path / "killed" / "checkpoints" / "8").is_dir():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -9
    ends = [command(*arguments, f"--workdir={tmp_path / name}") for name in ("killed", "straight")]
    assert [end.returncode for end in ends] == [0, 0], ends[0].stderr
    assert ends[0].stdout.splitlines()[-1] == ends[1].stdout.splitlines()[-1]
    states = [restore_run(tmp_path / name)[0] for name in ("killed", "straight")]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("how", ["unroll", "vmap"])
def test_an_ensemble_is_measured_by_each_and_by_the_mean(tmp_path, how):
    settings = {"ensemble__size": 3, "ensemble__by": how}
    result = train(angle_config(**settings), str(tmp_path / "run"), devices=jax.devices()[:1])
    alone = train(angle_config(seed=1), str(tmp_path / "alone"), devices=jax.devices()[:1])
    assert result["members"][1]["error"] == pytest.approx(alone["error"], rel=1e-3)
    assert result["error"] == pytest.approx(np.mean([m["error"] for m in result["members"]]))
    found = evaluate_run(str(tmp_path / "run"), devices=jax.devices()[:1])
    assert found.result["ensemble_error"] == pytest.approx(result["ensemble_error"], rel=1e-5)
    # What is kept of each example by the mean of the outputs adds up to the same.
    mean = found.outcomes.values["error"].mean()
    assert mean == pytest.approx(result["ensemble_error"], rel=1e-5)
    assert set(found.members) == {"seed 0", "seed 1", "seed 2"}
    network = load_run(str(tmp_path / "run"))
    said = network.serve(np.stack([found.source.read(i)["image"] for i in range(30)]))["angle"]
    truth = [found.source.read(i)["angle"] for i in range(30)]
    assert np.abs(said - truth).mean() == pytest.approx(mean, rel=1e-4)


def test_evaluate_look_report_export_and_predict(trained, tmp_path, caplog):
    folder, result = trained
    found = evaluate_run(str(folder))
    assert found.result["error"] == pytest.approx(result["error"], rel=1e-6)
    looked = open_run(str(folder))
    with pytest.raises(UserError, match="does not classify; it predicts angle"):
        looked.probabilities(np.stack([looked.example(0)[0]]))
    page = report(folder, tmp_path / "page.html").read_text()
    assert "This section could not be made" not in page
    assert not [r for r in caplog.records if r.name.startswith("jaxconv") and r.levelno > 20]
    assert (
        "mean error, degrees" in page
        and "Error" in page
        and "the one class that is predicted" in page
    )
    description = export_workdir(str(folder), str(tmp_path / "out"), platforms=("cpu",))
    assert description["task"].endswith("own_task.py:Angle") and description["class_names"] == []
    image, angle = looked.read_example(3)["image"], looked.read_example(3)["angle"]
    Image.fromarray(image[..., 0]).save(tmp_path / "x.png")
    items = find_items([str(tmp_path / "x.png")], "image")
    for network in (load_run(str(folder)), load_exported(str(tmp_path / "out"))):
        (prediction,) = predict_items(network, items)
        said = prediction.as_dict()
        assert said["file"].endswith("x.png") and abs(said["angle"] - angle) < 40
        assert prediction.rows().splitlines()[1] == f"  angle: {said['angle']:.4g}"
        with pytest.raises(UserError, match="is not a classifier; it returns angle: call `serve`"):
            network.predict(image[None])


def test_the_commands(trained, tmp_path):
    folder, result = trained
    shown = command("evaluate", "--workdir", folder, f"--predictions={tmp_path / 'all.csv'}")
    assert "mean error" in shown.stdout and "running the code of this workdir" in shown.stderr
    record = json.loads(shown.stdout.splitlines()[-1])
    assert record["error"] == pytest.approx(result["error"]) and "error" in record["intervals"]
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert lines[0] == "index,name,error,loss" and len(lines) == 31
    for arguments, words in (
        (("evaluate", "--confusion=c.png"), ["--confusion: the task", "it writes predictions"]),
        (("evaluate", "--views=flip"), ["--views=flip: the task", "it supports center"]),
        (("evaluate", "--per_class"), ["--per_class: the task", "has no table of classes"]),
        (("look", "mistakes"), ["mistakes: the task", "does not have this picture"]),
        (("evaluate", "--trust=no"), ["--trust=no", "own_task.py"]),
    ):
        name, *rest = arguments
        assert_one_line_error(command(name, *rest, "--workdir", folder), 2, *words)


class Rounded(Task):
    """Which of four quarters the mean of an image falls into: sums of any shape, and what is kept
    of each example for a figure that sums do not tell.
    """

    figures = (
        Figure("spread", "spread", panel="Spread"),
        Figure("loss", "loss", panel="Loss"),
    )
    needs = ("mean",)
    settings = {"quarters": 4}
    keeps = True
    outputs = 1

    def loss(self, outputs, batch):
        return jnp.square(outputs[:, 0] - batch["mean"])

    def sums(self, outputs, batch):
        quarter = jnp.int32(batch["mean"] * self.kwargs["quarters"])
        counts = jax.nn.one_hot(quarter, self.kwargs["quarters"], dtype=jnp.float32)
        matrix = counts[:, :, None] * counts[:, None, :]
        return super().sums(outputs, batch) | {"matrix": masked_sum(matrix, batch["mask"])}

    def keep(self, outputs, batch):
        return {"mean": batch["mean"]}

    def finish(self, sums, examples, kept=None):
        assert sums["matrix"].shape == (4, 4) and sums["matrix"].sum() == examples
        assert np.trace(sums["matrix"]) == examples
        assert len(kept["mean"]) == examples
        # The order is that of the source: a figure that another order would change.
        steps = np.abs(np.diff(kept["mean"])).sum()
        return {"loss": float(sums["loss"] / examples), "spread": float(steps)}


def greys(settings, split):
    """Images of one grey each, with their mean; 21, which no number of devices divides."""
    means = np.random.default_rng(len(split)).random(21).astype(np.float32)
    images = np.repeat(np.uint8(255 * means), 64).reshape(21, 8, 8, 1)
    return Arrays(images, {"mean": means})


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("streamed", [False, True])
def test_sums_of_any_shape_and_what_is_kept_in_order(tmp_path, mode, members, streamed):
    here = "tests.tasks.test_own_task"
    changes = {"parallel": mode, "ensemble__size": members, "ensemble__by": "unroll"}
    config = angle_config(**changes, steps=2, eval__every=2, batch_size=8, eval__batch_size=8)
    config.task.name, config.data.source = f"{here}.Rounded", f"{here}.greys"
    sources = greys(config.data, "train"), greys(config.data, "test")
    if streamed:
        sources = tuple(Streamed(source) for source in sources)
    result = train(config, str(tmp_path / "run"), sources=sources)
    expected = np.abs(np.diff(greys(config.data, "test").values["mean"])).sum()
    assert result["spread"] == pytest.approx(expected, rel=1e-6)
    assert read_metrics(tmp_path / "run")[-1]["eval/spread"] == result["spread"]


class Streamed(Arrays):
    """A source in memory that is read example by example."""

    def __new__(cls, source):
        from jaxconv.data.interface import Part

        return Part(source, len(source))


def test_what_a_task_cannot_have_is_said(tmp_path):
    def refused(words, sources=None, **changes):
        with pytest.raises(UserError, match=words):
            train(angle_config(**changes), str(tmp_path / "run"), sources=sources)

    refused("did you mean 'classification'", task__name="clasification")
    refused(
        "has no 'Angel', did you mean 'Angle'", task__name=f"{ROOT}/experiments/own_task.py:Angel"
    )
    refused("must be a class that derives", task__name=f"{ROOT}/experiments/own_task.py:draw")
    refused("cannot mix its targets", augment__mixup=0.2)
    refused("does not use it", loss__label_smoothing=0.1)
    refused("has no such setting; it has none", task__kwargs__size=3)
    refused("needs the target 'angle'.* has label", data__source="xo")
    refused("needs the target 'label'.* has angle", task__name="classification")
    refused(
        "'eval/errr', did you mean 'eval/error'.* or empty for the first",
        checkpoint__metric="eval/errr",
    )
    refused(r"has a target named 'mask', which is reserved", data__source=f"{__name__}.taken")
    refused("that returns a jaxconv.data.Source", data__source=f"{__name__}.nothing")
    refused("which fails: ZeroDivisionError", data__source=f"{__name__}.fails")


def taken(settings, split):
    return Arrays(np.zeros((4, 8, 8, 1), np.uint8), {"mask": np.zeros(4, np.float32)})


def nothing(settings, split):
    return [1, 2, 3]


def fails(settings, split):
    return 1 / 0


def test_the_first_figure_is_what_an_empty_metric_means():
    assert find_task("classification").metric("") == "eval/top1"
    assert find_task("classification").metric("eval/loss") == "eval/loss"
    angle = find_task(f"{ROOT}/experiments/own_task.py:Angle")
    assert angle.metric("") == "eval/error" and not angle.figure("eval/error").higher
    assert angle.figure("eval/ensemble_error").title == "mean error"


def test_a_bootstrap_interval_holds_the_mean():
    values = {"error": np.arange(100.0), "matrix": np.zeros((100, 2))}
    ((low, high),) = bootstrap_means(values, 500).values()
    assert 40 < low < 49.5 < high < 60 and bootstrap_means({}, 10) == {}


def test_the_description_tells_the_targets():
    config = angle_config()
    description = {
        "class_names": [],
        "targets": {"angle": {"shape": [], "dtype": "float32", "moves": ""}},
    }
    task = open_task(config, description)
    assert task.targets == {"angle": Target((), "float32")} and task.class_names == ()
    task.check()
