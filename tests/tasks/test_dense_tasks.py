"""Segmentation, localization and detection through the engine: killed and resumed, devices,
processes, ensembles, sweeps; predictions in the pixels of files; pictures and files.
"""

import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_run
from jaxconv.evaluation.several import together
from jaxconv.look.opened import open_run
from jaxconv.predict import find_items, predict_items
from jaxconv.run import train
from jaxconv.tasks import open_task
from jaxconv.tasks.classification.weights import class_weights
from jaxconv.tasks.segmentation.outcomes import figures
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import saved_data
from jaxconv.weights.export import export_workdir, load_exported, load_run
from tests.conftest import assert_one_line_error, command, process_settings
from tests.evaluation.test_pixels import SIZES, write_photographs
from tests.tasks.test_segmentation import masks_config, small, write_masks
from tests.train.test_processes import after, finish, start

TASKS = ("xo_segmentation", "xo_localization")
TITLES = {
    "xo_segmentation": "mean IoU",
    "xo_localization": "top-1 located",
    "xo_detection": "AP",
}
FIRST = {"xo_segmentation": "miou", "xo_localization": "loc1", "xo_detection": "ap"}


def run_flags(name, *more):
    """The smallest run of a task, as flags of the command."""
    return (
        f"--config=experiments/{name}.py:small",
        "--config.log.tensorboard=False",
        "--config.log.report=False",
        "--config.checkpoint.every=2",
        "--config.augment.flip=True",
        *more,
    )


def weights_of(workdir):
    return jax.tree.leaves(restore_run(workdir)[0].params)


def assert_same_weights(some, others, **tolerance):
    for one, other in zip(weights_of(some), weights_of(others), strict=True):
        if tolerance:
            np.testing.assert_allclose(one, other, **tolerance)
        else:
            np.testing.assert_array_equal(one, other)


FULL = [
    TASKS[0],
    *(pytest.param(name, marks=pytest.mark.full) for name in (TASKS[1], "xo_detection")),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_killed_run_ends_with_the_same_bits(name, tmp_path):
    """Killed by SIGKILL when its first checkpoint is complete, and started again."""
    flags = run_flags(name, "--config.steps=8", "--config.checkpoint.every=3")
    whole = command("train", *flags, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    code = "\n".join(
        [
            "import os, signal",
            "from jaxconv.train.checkpoint import Checkpoints as C",
            "save = C.save",
            "def killing(self, step, *a, **k):",
            "    if step > 3: os.kill(os.getpid(), signal.SIGKILL)",
            "    found = save(self, step, *a, **k); self.wait(); return found",
            "C.save = killing",
        ]
    )
    killed = subprocess.run(
        [*after(code), "train", *flags, f"--workdir={tmp_path / 'killed'}"],
        **process_settings(1),
        capture_output=True,
        timeout=300,
    )
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "killed/checkpoints/3").is_dir()
    assert not (tmp_path / "killed/checkpoints/8").exists()
    again = command("train", *flags, f"--workdir={tmp_path / 'killed'}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.full
@pytest.mark.parametrize("name", FULL)
def test_two_processes_train_as_one(name, tmp_path):
    # By SGD: Adam turns the rounding of a gradient that is 0, as that of a bias before a
    # normalisation, into whole steps.
    sgd = "--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.01"
    flags = run_flags(name, "--config.steps=4", "--config.batch_size=8", *sgd)
    one = command("train", *flags, f"--workdir={tmp_path / 'one'}", devices=4)
    assert one.returncode == 0, one.stderr
    codes, said = finish(start(tmp_path / "two", of=flags))
    assert codes == [0, 0], said
    assert_same_weights(tmp_path / "one", tmp_path / "two", rtol=2e-3, atol=2e-4)
    found, wanted = (evaluate_run(str(tmp_path / n)).result for n in ("two", "one"))
    assert found["examples"] == wanted["examples"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-2)


@pytest.mark.full
@pytest.mark.parametrize("name", FULL)
def test_members_of_an_ensemble_are_runs_of_their_own(name, tmp_path, one_device):
    """And a sweep over the learning rate in one program; both are measured by their mean too."""
    quiet = {"log__report": "False", "steps": 4, "batch_size": 8}
    quiet |= {"optimizer__name": "sgd", "optimizer__learning_rate": 0.01}
    train(small(name, **quiet, ensemble__size=2), str(tmp_path / "two"), devices=one_device)
    train(small(name, **quiet, seed=1), str(tmp_path / "one"), devices=one_device)
    together_, alone = (restore_run(tmp_path / n)[0].params for n in ("two", "one"))
    for both, one in zip(*map(jax.tree.leaves, (together_, alone)), strict=True):
        np.testing.assert_allclose(both[1], one, rtol=1e-3, atol=1e-4)
    found = evaluate_run(str(tmp_path / "two"), devices=one_device)
    assert len(found.members) == 2 and f"ensemble_{FIRST[name]}" in found.result
    sweep = {"ensemble__over": "learning_rate:0.001,0.1"}
    result = train(small(name, **quiet, **sweep), str(tmp_path / "sweep"), devices=one_device)
    assert [m["name"] for m in result["members"]] == ["learning_rate 0.001", "learning_rate 0.1"]
    losses = [member["loss"] for member in result["members"]]
    assert losses[0] != losses[1]


@pytest.mark.full
def test_an_ensemble_of_masks_with_views(tmp_path, one_device):
    """The mean over members is taken of their views' means, at the images' own size."""
    root = write_photographs(tmp_path / "set", SIZES)
    write_photographs(root, SIZES, "train")
    config = masks_config(
        root, data__image_size=32, batch_size=5, steps=4, log__report="False", ensemble__size=2
    )
    train(config, str(tmp_path / "run"), devices=one_device)
    settings = {"views": "flip", "own_size": True, "devices": one_device}
    found = evaluate_run(str(tmp_path / "run"), **settings)
    assert found.result["examples"] == len(SIZES)
    counted = [outcomes.confusions.sum() for outcomes in found.members.values()]
    assert counted == [found.outcomes.confusions.sum()] * 2
    assert found.result["ensemble_loss"] <= found.result["loss"] + 1e-6  # by Jensen's inequality


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_sweep(name, tmp_path):
    grid = "--grid=optimizer.learning_rate=0.001,0.01"
    flags = (*run_flags(name, "--config.steps=3"), f"--workdir={tmp_path / 'sweep'}", grid)
    process = command("sweep", *flags)
    assert process.returncode == 0, process.stderr
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "0.001" in table and "0.01" in table and TITLES[name] in table
    for number in ("0.001", "0.01"):
        (run,) = (tmp_path / "sweep").glob(f"*{number}")
        assert restore_run(run)[1] == 3


def test_balanced_weights_of_classes_by_their_pixels(tmp_path, one_device):
    """Counted over the training masks as they are stored, without ignored pixels."""
    root = write_masks(tmp_path / "set")
    for resident in (10**9, 0):
        config = masks_config(
            root,
            loss__class_weights="balanced",
            data__resident_limit=resident,
            steps=3,
            batch_size=4,
        )
        config.log.report = False
        folder = tmp_path / f"run{resident}"
        train(config, str(folder), devices=one_device)
        masks = [np.asarray(Image.open(root / f"train/masks/{n}.png")) for n in range(6)]
        wanted = np.bincount(np.stack(masks).ravel(), minlength=3)[:2]
        data = saved_data(folder)
        assert data["class_counts"] == wanted.tolist()
    task = open_task(config, data)
    weights = class_weights("balanced", task.class_names, wanted)
    np.testing.assert_allclose(weights, wanted.sum() / (2 * wanted), rtol=1e-6)
    truth = jnp.array(np.stack(masks))[:, :4, :4]
    logits = jnp.stack([jnp.zeros(truth.shape), jnp.ones(truth.shape)], axis=-1)
    each = -jax.nn.log_softmax(logits)
    heavy = jnp.where(truth == 0, weights[0] * each[..., 0], weights[1] * each[..., 1])
    counts = truth != 255
    counts &= truth < 2
    truth = jnp.where(counts, truth, 255)
    found = task.make_loss({})(logits, {"segmentation": truth})
    # The scenes' loss adds the Dice loss, which has no weights.
    plain = open_task(small(loss__name="dice"), data).make_loss({})(logits, {"segmentation": truth})
    wanted = jnp.sum(jnp.where(counts, heavy, 0), (1, 2)) / jnp.sum(counts, (1, 2))
    np.testing.assert_allclose(found - plain, wanted, rtol=1e-5)


@pytest.fixture(scope="module", params=TASKS)
def trained(request, tmp_path_factory):
    """A run that tells its letters, its task, and an exported copy."""
    folder = tmp_path_factory.mktemp(request.param)
    config = small(request.param, log__report="False", steps=60, data__scenes__train_examples=64)
    train(config, str(folder / "run"), devices=jax.devices()[:1])
    export_workdir(str(folder / "run"), str(folder / "exported"), platforms=("cpu",))
    return request.param, folder / "run", folder / "exported"


def test_an_exported_program_has_preprocessing_and_answers(trained):
    """It takes bytes, and gives classes or boxes."""
    name, workdir, exported = trained
    opened, program = open_run(workdir), load_exported(str(exported))
    images = np.stack([opened.source().read(n)["image"] for n in range(3)])
    assert images.dtype == np.uint8
    served = program.serve(images)
    outputs = opened.model.apply(opened.variables, opened.inputs(images), train=False)
    if name == "xo_segmentation":
        np.testing.assert_array_equal(served["classes"], jnp.argmax(outputs, -1))
        assert served["classes"].shape == images.shape[:3]
    else:
        assert served["boxes"].shape == (3, 2, 4)
        np.testing.assert_allclose(
            served["probabilities"], jax.nn.softmax(outputs[:, :2]), rtol=1e-4
        )


@pytest.mark.parametrize("shape", [(96, 160), (150, 70), (32, 32)])
def test_predictions_are_in_the_pixels_of_the_file(trained, tmp_path, shape):
    """A scene inside a larger, oblong file: what is said of it is where it is in the file."""
    name, workdir, exported = trained
    opened = open_run(workdir)
    size = opened.input_shape[0]
    image, side = opened.source().read(1)["image"], min(shape)
    scale = side / size
    large = np.asarray(
        Image.fromarray(image[..., 0]).resize((side, side), Image.Resampling.BILINEAR)
    )
    canvas = np.full(shape, int(np.median(image)), np.uint8)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    canvas[top : top + side, left : left + side] = large
    Image.fromarray(canvas).save(tmp_path / "large.png")
    alone = {k: v[0] for k, v in opened.served(image[None]).items()}
    items = find_items([str(tmp_path / "large.png")], "image")
    for network in (load_run(workdir), load_exported(str(exported))):
        (found,) = predict_items(network, items)
        if name == "xo_localization":
            k = int(np.argmax(found.served["probabilities"]))
            wanted = alone["boxes"][k] * scale + np.array([top, left, top, left])
            np.testing.assert_allclose(found.served["boxes"][k], wanted, atol=0.08 * side)
            np.testing.assert_allclose(
                found.said["top"][0]["box"], found.served["boxes"][k], atol=0.1
            )
            continue
        assert found.served["classes"].shape == shape == found.served["confidence"].shape
        whole = network.step > 0
        inside = found.served["classes"][top : top + side, left : left + side]
        wanted = alone["classes"][
            (np.arange(side) / scale).astype(int)[:, None], (np.arange(side) / scale).astype(int)
        ]
        ink = (inside > 0) & (inside < 255), wanted > 0
        assert (ink[0] & ink[1]).sum() > 0.6 * (ink[0] | ink[1]).sum() > 0
        assert shape != (32, 32) or (inside == wanted).all()
        outside = np.ones(shape, bool)
        outside[top : top + side, left : left + side] = False
        # A run's network sees all of the image, an exported one the middle square.
        if outside.any():
            assert (found.served["classes"][outside] == 255).all() == (not whole)
        assert sum(one["share"] for one in found.said["classes"]) == pytest.approx(1)


@pytest.mark.slow
def test_predict_writes_pictures_and_masks(trained, tmp_path):
    name, workdir, exported = trained
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((40, 64), 128, np.uint8)).save(tmp_path / folder / "x.png")
    files = (tmp_path / "a", tmp_path / "b")
    for network in (f"--workdir={workdir}", f"--exported={exported}"):
        out = tmp_path / network.partition("=")[0][2:]
        process = command("predict", network, *files, f"--out={out}", "--json")
        assert process.returncode == 0, process.stderr
        assert len(process.stdout.splitlines()) == 2
        wanted = {"x.png", "x_2.png"}
        if name == "xo_segmentation":
            wanted |= {"x_mask.png", "x_2_mask.png"}
            mask = Image.open(out / "x_mask.png")
            assert mask.mode == "P" and mask.size == (64, 40)
            assert set(np.unique(np.asarray(mask))) <= {0, 1, 2, 255}
        assert {path.name for path in out.iterdir()} == wanted
        assert np.asarray(Image.open(out / "x.png").convert("RGB")).std() > 5
    again = command("predict", f"--workdir={workdir}", *files, f"--out={out}")
    assert_one_line_error(again, 2, f"--out={out}: already exists and is not an empty folder")


@pytest.mark.slow
def test_files_of_evaluate_and_pictures_of_look(trained, tmp_path):
    name, workdir, _ = trained
    files = [f"--predictions={tmp_path / 'all.csv'}"]
    if name == "xo_segmentation":
        files += [f"--confusion={tmp_path / 'confusion.csv'}"]
    process = command("evaluate", f"--workdir={workdir}", "--bootstrap=20", *files)
    assert process.returncode == 0, process.stderr
    record = json.loads(process.stdout.splitlines()[-1])
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert len(lines) == 1 + record["examples"] and FIRST[name] in lines[0].split(",")
    if name == "xo_segmentation":
        rows = [line.split(",") for line in (tmp_path / "confusion.csv").read_text().splitlines()]
        counts = np.array([row[1:] for row in rows[1:]], int)
        assert np.trace(counts) / counts.sum() == pytest.approx(record["accuracy"])
        pictures = ("worst", "classes", "predictions")
    else:
        pictures = ("worst", "predictions")
    for picture in pictures:
        process = command("look", picture, f"--workdir={workdir}", f"--out={tmp_path / 'p.png'}")
        assert process.returncode == 0, process.stderr
        assert np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).std() > 5


def test_files_of_masks_hold_what_was_counted(trained, tmp_path):
    name, workdir, _ = trained
    if name != "xo_segmentation":
        pytest.skip("of masks")
    found = evaluate_run(str(workdir), devices=jax.devices()[:2])
    writers = found.task.writers
    writers["predictions"][1](tmp_path / "all.npz", found)
    stored = np.load(tmp_path / "all.npz")
    np.testing.assert_array_equal(stored["confusions"], found.outcomes.confusions)
    assert stored["class_names"].tolist() == list(found.task.class_names)
    writers["confusion"][1](tmp_path / "confusion.png", found)
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    mious = found.task.worst(found.outcomes, 12)
    each = [float(figures(found.outcomes.confusions[n])["miou"]) for n in mious]
    assert each == sorted(each) and len(each) == 12


def test_runs_on_other_masks_are_not_averaged(trained):
    name, workdir, _ = trained
    runs = [
        evaluate_run(str(workdir), overrides=[f"data.scenes.noise={noise}"]) for noise in (0.2, 0.2)
    ]
    with pytest.raises(UserError, match="cannot average the predictions of several runs"):
        together(runs)
    other = evaluate_run(str(workdir), overrides=["data.scenes.seed=5"])
    if name == "xo_segmentation":
        with pytest.raises(UserError, match=r"is neither [\d,]+.*, where .* has neither"):
            together([runs[0], other])
