"""`jaxconv evaluate`: every example once and in order on any devices, several runs, all output."""

import csv
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.config import default_config
from jaxconv.data import from_arrays
from jaxconv.data.decode import read_image
from jaxconv.errors import UserError
from jaxconv.evaluation import tables
from jaxconv.evaluation.evaluation import Evaluation, evaluate_run, evaluate_workdir
from jaxconv.evaluation.several import evaluate_runs, together
from jaxconv.evaluation.views import View
from jaxconv.files import check_file, whole_file
from jaxconv.models.configured import build_model
from jaxconv.run import train
from jaxconv.tasks import open_task
from jaxconv.tasks.classification import tables as class_tables
from jaxconv.tasks.classification.losses import correct_within
from jaxconv.tasks.classification.outcomes import Outcomes, figures
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import read_metrics, saved_config
from tests.conftest import assert_one_line_error, command, tiny_config, write_images

CLASSES = tuple("abcdefg")


def task_of(class_names):
    return open_task(default_config(), {"class_names": class_names})


WRITERS = task_of(CLASSES).writers


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Noise of seven classes, 35 images to evaluate on, and two runs on them of other seeds."""
    root = tmp_path_factory.mktemp("evaluate")
    write_images(root / "images", classes=CLASSES, count=5)
    for seed in (0, 1):
        train(settings(root, seed=seed), str(root / str(seed)), devices=jax.devices()[:1])
    return root


def settings(root, **changes):
    return tiny_config(
        **{
            "data__source": f"folder:{root / 'images'}",
            "steps": 4,
            "eval__batch_size": 16,
            **changes,
        }
    )


def changed(root, name, other, **changes):
    """A copy of a run whose config says something else."""
    shutil.copytree(root / name, root / other, dirs_exist_ok=True)
    path = root / other / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        part, _, last = key.rpartition("__")
        (config[part] if part else config)[last] = value
    path.write_text(json.dumps(config))
    return str(root / other)


def files_of(root):
    return [root / "images" / "test" / name / f"{n:03}.png" for name in CLASSES for n in range(5)]


def logits_by_hand(root, name):
    """[35, 7], from the files one by one."""
    images = jnp.stack([read_image(file) for file in files_of(root)])
    model = build_model(saved_config(root / name).model, len(CLASSES))
    return model.apply(
        restore_run(root / name)[0].variables, (images / 255 - 0.5) / 0.5, train=False
    )


@pytest.mark.parametrize(
    "mode, devices", [("jit", 1), ("jit", 2), ("jit", 4), ("pmap", 4), ("fsdp", 2)]
)
@pytest.mark.parametrize("resident_limit", [0, 10**9])
def test_every_example_once_and_in_order(root, mode, devices, resident_limit):
    workdir = changed(
        root, "0", f"{mode}{resident_limit}", parallel=mode, data__resident_limit=resident_limit
    )
    found = evaluate_run(workdir, devices=jax.devices()[:devices])
    outcomes = found.outcomes
    np.testing.assert_allclose(outcomes.logits, logits_by_hand(root, "0"), atol=1e-5)
    assert outcomes.labels.tolist() == [
        k for k in range(7) for _ in range(5)
    ] and outcomes.index.tolist() == list(range(35))
    assert [found.source.name(int(i)) for i in outcomes.index] == [
        str(file) for file in files_of(root)
    ]
    assert outcomes.class_names == CLASSES and found.members == {} and found.view == View()
    assert found.result["examples"] == 35 and found.result["step"] == found.step == 4
    own = figures(outcomes)
    assert [found.result[name] for name in ("loss", "top1", "top5")] == pytest.approx(
        [own[name] for name in ("loss", "top1", "top5")]
    )


def test_damaged_examples_leave_a_gap(root):
    workdir = changed(
        root,
        "0",
        "gap",
        data__resident_limit=0,
        data__damaged_share=0.1,
        data__source=f"folder:{root / 'damaged'}",
    )
    shutil.copytree(root / "images", root / "damaged")
    (root / "damaged" / "test" / "b" / "002.png").write_bytes(b"no image")
    outcomes = evaluate_run(workdir, devices=jax.devices()[:2]).outcomes
    assert outcomes.index.tolist() == [n for n in range(35) if n != 7]
    np.testing.assert_allclose(
        outcomes.logits, np.delete(logits_by_hand(root, "0"), 7, axis=0), atol=1e-5
    )


def test_files_that_are_left_out_keep_the_names_of_the_others(root):
    shutil.copytree(root / "images", root / "skipped")
    (root / "skipped" / "test" / "b" / "002.png").write_bytes(b"no image")
    workdir = changed(
        root, "0", "skip", data__skip_unreadable=True, data__source=f"folder:{root / 'skipped'}"
    )
    found = evaluate_run(workdir, devices=jax.devices()[:1])
    assert len(found.outcomes) == 34 and found.source.name(int(found.outcomes.index[7])).endswith(
        "b/003.png"
    )


def test_top_5_while_training(root):
    rows = [row for row in read_metrics(root / "0") if "eval/top5" in row]
    assert [row["step"] for row in rows] == [4]
    result = evaluate_workdir(str(root / "0"), devices=jax.devices()[:1])
    assert rows[0]["eval/top5"] == result["top5"] > result["top1"] == rows[0]["eval/top1"]


def test_the_k_highest_logits():
    logits = jnp.array([[3.0, 2, 1, 0], [1, 1, 1, 1], [0, jnp.nan, 0, 0], [jnp.nan, 5, 6, 7]])
    label = jnp.array([2, 1, 0, 0])
    for k, wanted in ((1, [0, 0, 0, 0]), (2, [0, 1, 1, 0]), (3, [1, 1, 1, 0])):
        assert correct_within(logits, label, k).tolist() == wanted
        assert (
            Outcomes(np.asarray(label), np.asarray(logits), tuple("abcd")).ranks < k
        ).tolist() == wanted


def test_several_runs_and_their_average(root):
    one_device = jax.devices()[:1]
    workdirs = [str(root / "0"), str(root / "1")]
    each = [evaluate_run(workdir, devices=one_device) for workdir in workdirs]
    joint = evaluate_runs(workdirs, devices=one_device)
    np.testing.assert_allclose(
        joint.outcomes.probabilities,
        np.mean([run.outcomes.probabilities for run in each], axis=0),
        atol=1e-6,
    )
    losses = [run.result["loss"] for run in each]
    assert joint.result["loss"] == pytest.approx(np.mean(losses)) and joint.result[
        "loss_spread"
    ] == pytest.approx(np.std(losses, ddof=1))
    assert joint.result["ensemble_loss"] == pytest.approx(
        figures(joint.outcomes)["loss"]
    ) and joint.result["ensemble_loss"] <= np.mean(losses)
    assert [member["name"] for member in joint.result["members"]] == workdirs == list(joint.members)
    assert joint.result["members"][1]["top5"] == each[1].result["top5"]
    assert together(each[:1]) is each[0]
    # Networks that see the same files at other sizes go together.
    train(settings(root, data__image_size=12), str(root / "larger"), devices=one_device)
    assert (
        len(evaluate_runs([str(root / "0"), str(root / "larger")], devices=one_device).members) == 2
    )


def test_members_of_an_ensemble(root):
    config = settings(root, ensemble__size=2, ensemble__by="unroll")
    train(config, str(root / "ensemble"), devices=jax.devices()[:1])
    for devices in (1, 4):
        found = evaluate_run(str(root / "ensemble"), devices=jax.devices()[:devices])
        assert list(found.members) == ["seed 0", "seed 1"]
        for member, outcomes in zip(found.result["members"], found.members.values(), strict=True):
            assert (
                member["loss"] == pytest.approx(outcomes.losses.mean(), rel=1e-5)
                and member["top1"] == (outcomes.ranks == 0).mean()
            )
        mean = np.mean([outcomes.probabilities for outcomes in found.members.values()], axis=0)
        np.testing.assert_allclose(found.outcomes.probabilities, mean, atol=1e-6)
        assert found.result["ensemble_loss"] == pytest.approx(
            found.outcomes.losses.mean(), rel=1e-5
        )
    # Together with another run it counts by its averaged prediction.
    both = evaluate_runs([str(root / "ensemble"), str(root / "0")], devices=jax.devices()[:1])
    assert both.result["members"][0]["loss"] == pytest.approx(
        found.result["ensemble_loss"], rel=1e-5
    )
    lines = dict(tables.make_rows(both, tables.make_record(both, 0), 0))
    assert {"", str(root / "ensemble"), "mean and spread", "averaged"} <= lines.keys()


def test_runs_that_cannot_be_averaged(root):
    one_device = jax.devices()[:1]
    first = str(root / "0")
    with pytest.raises(UserError, match="0/: is given twice"):
        evaluate_runs([first, first + "/"])
    train(tiny_config(steps=3), str(root / "xo"), devices=one_device)
    with pytest.raises(
        UserError,
        match=r"its class 0 is 'o', where .*0 has 'a'; only runs on the same data can be averaged",
    ):
        evaluate_runs([first, str(root / "xo")])
    with pytest.raises(UserError, match="holds no run"):
        evaluate_runs([first, str(root / "nothing")])
    run, images = evaluate_run(first, devices=one_device), np.zeros((35, 8, 8, 3), np.uint8)
    labels = run.outcomes.labels.astype(np.int64)
    others = {
        "34 examples, and .*0 on 35": from_arrays(images[1:], labels[1:], CLASSES),
        "example 0 is g, where .*0 has a": from_arrays(images, labels[::-1], CLASSES),
        r"its examples have the checksum \d+, while those of .*0 have \d+": from_arrays(
            images, labels, CLASSES
        ),
    }
    for words, source in others.items():
        with pytest.raises(UserError, match=words):
            together([run, evaluate_run(first, devices=one_device, source=source)])


def test_what_is_said_and_written(root):
    files = [
        f"--{what}={root / name}"
        for what, name in (
            ("predictions", "p.npz"),
            ("confusion", "c.csv"),
            ("reliability", "r.png"),
        )
    ]
    process = command(
        "evaluate", "--workdir", root / "0", "--per_class", "--bootstrap=50", *files, devices=3
    )
    assert process.returncode == 0 and process.stderr == "", process.stderr
    *lines, last = process.stdout.splitlines()
    record, found = json.loads(last), evaluate_run(str(root / "0"), devices=jax.devices()[:1])
    own = figures(found.outcomes)
    assert list(record) == [
        *("split", "examples", "loss", "top1", "top5", "ece", "intervals", "source")
    ]
    assert {name: record[name] for name in own} == pytest.approx(own, rel=1e-5) and set(
        record["intervals"]
    ) == set(own)
    low, high = record["intervals"]["top5"]
    assert f"top-5     {100 * own['top5']:.2f} % [{100 * low:.2f}, {100 * high:.2f}]" in lines
    assert (
        "[95 %]    intervals: exact ones of shares of examples, the rest by 50 bootstrap resamples"
        in (lines)
    )
    assert [
        line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in CLASSES
    ] != []
    with np.load(root / "p.npz") as file:
        saved = dict(file)
    np.testing.assert_allclose(saved["probabilities"], found.outcomes.probabilities, atol=1e-6)
    assert (
        saved["labels"].tolist() == found.outcomes.labels.tolist()
        and tuple(saved["class_names"]) == CLASSES
    )
    assert saved["names"].tolist() == [str(file) for file in files_of(root)] and saved[
        "index"
    ].tolist() == list(range(35))
    rows = list(csv.reader((root / "c.csv").read_text().splitlines()))
    assert rows[0][1:] == list(CLASSES) and np.trace(
        np.array([row[1:] for row in rows[1:]], int)
    ) == round(35 * record["top1"])
    assert (root / "r.png").read_bytes().startswith(b"\x89PNG")
    assert (
        (root / "p.npz").stat().st_mode & 0o777
        == (root / "r.png").stat().st_mode & 0o777
        == (root / "0/config.json").stat().st_mode & 0o777
    )


def test_bad_options_are_one_line_before_any_work(root):
    run = ("evaluate", "--workdir", root / "0")
    assert_one_line_error(
        command(*run, "--predictions=p.npy"), 2, "'.npy', did you mean '.npz'?; give .npz or .csv"
    )
    assert_one_line_error(command(*run, "--views=denze"), 2, "did you mean 'dense'?")
    for option, path, words in (
        ("predictions", root / "nowhere" / "p.csv", "cannot be written"),
        ("confusion", root / "c.jpg", "give .csv or .png"),
        ("reliability", "", "is empty"),
    ):
        with pytest.raises(UserError, match=words):
            check_file(option, str(path), WRITERS[option][0])


def test_predictions_as_a_table(root, tmp_path):
    found = evaluate_run(str(root / "0"), devices=jax.devices()[:1])
    class_tables.write_predictions(tmp_path / "p.csv", found)
    class_tables.write_confusion(tmp_path / "c.png", found)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(rows) == 35 and rows[7]["name"].endswith("b/002.png") and rows[7]["class"] == "b"
    for row, probabilities, label in zip(
        rows, found.outcomes.probabilities, found.outcomes.labels, strict=True
    ):
        said = [row[f"predicted_{k}"] for k in range(1, 6)]
        assert said == [CLASSES[k] for k in np.argsort(-probabilities)[:5]]
        assert float(row["probability"]) == pytest.approx(probabilities[label], rel=1e-5)
    assert np.mean([row["predicted_1"] == row["class"] for row in rows]) == found.result["top1"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("before")
    with pytest.raises(OSError, match="full"), whole_file(path) as temporary:
        temporary.write_text("half")
        raise OSError("full")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_the_table_of_classes():
    outcomes = Outcomes(
        np.array([0, 0, 0, 1, 1, 2]),
        np.eye(4)[[0, 1, 1, 1, 2, 2]],
        ("cat", "dog", "n02109961", "never"),
    )
    lines = class_tables.class_lines(outcomes)
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "cat",
        "dog",
        "n02109961 Eskimo dog, husky",
    ]
    assert lines[1].split() == (
        ["cat", "3", "33.33", "%", "[", "0.84,", "90.57]", "100.00", "%", "dog", "2"]
    )
    assert lines[3].endswith("-") and "never" not in "".join(lines)


def evaluation_of(outcomes, apart=(), **result):
    whole = {"split": "test", "examples": len(outcomes), "step": 3, **figures(outcomes), **result}
    task = task_of(outcomes.class_names)
    data = ("xo", "test", 3, View())
    return Evaluation("run", *data, task, whole, outcomes, dict(apart), None, lambda: 0)


def test_what_is_said_of_imagenets_classes_and_of_no_mistake():
    names = ("n02109961", "n02110063", "n03481172")
    outcomes = Outcomes(np.array([0, 0, 1, 2]), 9 * np.eye(3)[[0, 1, 1, 2]], names)
    evaluation = evaluation_of(outcomes)
    record = tables.make_record(evaluation, 20)
    rows = dict(tables.make_rows(evaluation, record, 20))
    assert rows["height"].startswith(f"{record['height']:.4f} [") and record["height"] > 0
    assert (
        rows["wrong"] == "1 of 4"
        and f"ancestor {4 * record['height']:.2f} levels up in WordNet" in rows[""]
    )
    assert rows["classes"].startswith("n02109961 Eskimo dog, husky 50.00 %, ")
    assert rows["confused"] == "n02109961 Eskimo dog, husky as n02110063 malamute, malemut... 1"
    right = evaluation_of(Outcomes(np.array([0, 1]), np.eye(2), ("o", "x")))
    rows = dict(tables.make_rows(right, tables.make_record(right, 20), 20))
    assert rows["top-1"] == "100.00 % [15.81, 100.00]" and "confused" not in rows
    assert "no example is wrong; among new examples up to 84.19 % may be" in rows[""]


def test_members_that_have_diverged_are_named():
    good = Outcomes(np.array([0, 1]), np.eye(2), ("o", "x"))
    members = [{"name": "seed 0", "loss": 0.3, "top1": 1.0}, {"name": "seed 1"}]
    joint = {"loss_spread": 0.0, "top1_spread": 0.0, "ensemble_loss": 0.3, "ensemble_top1": 1.0}
    evaluation = evaluation_of(good, {"seed 0": good}, members=members, **joint)
    record = tables.make_record(evaluation, 0)
    rows = dict(tables.make_rows(evaluation, record, 0))
    assert (
        rows["seed 1"] == "diverged"
        and rows["seed 0"].startswith("100.00 %")
        and record["members"][1] == {"name": "seed 1"}
    )
    assert (
        record["ensemble_ece"] == record["ece"] == record["members"][0]["ece"]
        and record["ece_spread"] == 0
    )
