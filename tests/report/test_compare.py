"""Comparison of runs on a page; charts against time, and smoothed."""

import json

import numpy as np
import pytest

from jaxconv.config import default_config
from jaxconv.drawing.parts import Series
from jaxconv.errors import UserError
from jaxconv.models.network import LAYOUT
from jaxconv.report import document
from jaxconv.report import write as report
from jaxconv.train.workdir import read_metrics, write_json
from tests.conftest import assert_one_line_error, command


def fake_run(folder, rows=40, rate=0.1, seconds=90.0, **changes):
    """The files of a run of X's and O's that has logged some rows, and evaluated every tenth."""
    folder.mkdir(parents=True)
    config = default_config()
    config.data.source, config.steps = "xo", 10 * rows
    config.optimizer.learning_rate = rate
    for key, value in changes.items():
        config[key] = value
    write_json(folder / "config.json", config.to_dict())
    data = {"layout": LAYOUT, "train_examples": 64, "image_shape": [32, 32, 1], "kind": "image"}
    data |= {"cropped": False, "class_names": ["O", "X"]}
    write_json(folder / "data.json", data)
    noise = np.random.default_rng(0).random(rows).tolist()
    lines = [
        {"step": 10 * n, "train/loss": value}
        | ({"eval/loss": 1 / n, "eval/top1": n / rows} if n % 10 == 0 else {})
        | ({"seconds": seconds * n} if seconds else {})
        for n, value in enumerate(noise, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_on_one_page(tmp_path):
    folders = [
        fake_run(tmp_path / name / "run", rate=rate) for name, rate in (("a", 0.1), ("b", 0.2))
    ]
    text = report.compare(folders, tmp_path / "page.html").read_text()
    assert "<title>a/run and b/run, 2 unfinished</title>" in text
    assert "Keys of the config that differ" in text and "optimizer.learning_rate" in text
    assert "The highest top-1 so far is 100.00 %" in text
    assert '"label": "b/run"' in text and "seconds" in text
    same = [fake_run(tmp_path / name, rate=0.1) for name in "cd"]
    assert (
        "The configs of the runs are the same."
        in report.compare(same, tmp_path / "e.html").read_text()
    )


def test_runs_that_cannot_be_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = fake_run(tmp_path / "a"), fake_run(tmp_path / "b")
    (b / "config.json").write_text(
        (b / "config.json").read_text().replace('"classification"', '"segmentation"')
    )
    with pytest.raises(
        UserError, match=r"different tasks cannot be compared \(a: classification, b: segm"
    ):
        report.compare([a, b])
    with pytest.raises(UserError, match="the run is given twice"):
        report.compare([a, a])
    with pytest.raises(UserError, match="no run"):
        report.compare([a, tmp_path])
    assert not (tmp_path / "comparison.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report"], "give the folder of a run or sweep"),
        (["report", "a", "--workdir=a"], "give the folder of a run or sweep"),
        (["report", "a", "b", "--watch"], "--watch: is for the page of one run"),
        (["report", "a", "b", "--config.data.image_size=9"], "takes no config"),
        (["report", "a", "b", "--out=x.txt"], "--out=x.txt"),
    ],
)
def test_commands_that_say_what_is_wrong(tmp_path, arguments, words):
    assert_one_line_error(command(*arguments), 2, words)


@pytest.mark.slow
def test_the_command(tmp_path):
    a, b = fake_run(tmp_path / "a"), fake_run(tmp_path / "b", rate=0.3)
    out = tmp_path / "both.html"
    process = command("report", a, b, f"--out={out}")
    assert process.stdout.strip() == str(out) and process.returncode == 0, process.stderr
    assert "a comparison of 2 runs" in out.read_text()


def test_thinning_keeps_times_and_peaks():
    ys = [float(n % 97) for n in range(10_000)]
    ys[5_000], ys[7] = 1e6, None
    series = Series("a", [*range(10_000)], ys, seconds=[n / 2 for n in range(10_000)])
    thin = document.thinned(series, 200)
    assert 150 < len(thin.xs) <= 202 and thin.xs == sorted(thin.xs) and 1e6 in thin.ys
    assert thin.xs[0] == 0 and thin.xs[-1] == 9_999 and None not in thin.ys
    assert list(thin.seconds) == [x / 2 for x in thin.xs]


def test_metrics_are_read_as_line_by_line(tmp_path):
    """Lines that were cut off are left out, also where the next is on the same line."""
    whole = '{"step": 1, "a": null}\n{"step": 2, "a": NaN}\n'
    for text, steps in {
        whole: [1, 2],
        whole + '{"step": 3, "a"': [1, 2],
        whole + '{"step": 3, "a": {"step": 4}\n{"step": 5}\n': [1, 2, 5],
        whole + '[1]\n\n7\n{"step": "x"}\n{"step": 9}': [1, 2, 9],
        '{"step": 1, "b": [{}\n{"step": 2}]}\n{"step": 3}\n': [3],
        "": [],
    }.items():
        (tmp_path / "metrics.jsonl").write_text(text)
        rows = read_metrics(tmp_path)
        assert [row["step"] for row in rows] == steps, text
        assert all(np.isnan(row["a"]) for row in rows if "a" in row)
    assert [row["step"] for row in read_metrics(tmp_path, up_to=1)] == []


SHOWN = """const heads = document.querySelectorAll('.u-legend tr:first-child th')
return [...heads].map(head => head.textContent)"""
LISTED = """const rows = document.querySelector('.u-legend').querySelectorAll('.u-series')
return [[...rows].filter(row => !row.hidden).length, rows.length]"""


def set_value(browser, selector, value, event):
    browser.run(
        "const x = document.querySelector(arguments[0]); x.value = arguments[1];"
        "x.dispatchEvent(new Event(arguments[2]))",
        selector,
        value,
        event,
    )


@pytest.mark.slow
def test_charts_against_time_and_smoothed(browser, tmp_path):
    folders = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", rate=0.2, seconds=45.0)]
    path = report.compare(folders, tmp_path / "page.html")
    browser.open(path.as_uri())
    ready = "return document.querySelectorAll('.u-over').length >= 3"
    browser.wait(ready)
    output = "return document.querySelector('.zoom output').textContent"
    assert browser.run(output) == "steps 10 to 400, all"
    set_value(browser, ".against", "time", "change")
    assert browser.run(output) == "minutes 0.75 to 60, all"
    assert set(browser.run(SHOWN)) == {"minutes"}
    # Behind each smoothed line is the measured one, which the legend does not list.
    listed, lines = browser.run(LISTED)
    set_value(browser, ".smoothing", "0.9", "input")
    assert listed == lines == 3 and browser.run(LISTED) == [3, 5]
    told = "return document.querySelector('.smoothing').getAttribute('aria-valuetext')"
    assert browser.run(told) == "0.9"
    assert browser.errors() == []


@pytest.mark.slow
def test_runs_without_times_are_shown_against_steps_alone(browser, tmp_path):
    folders = [fake_run(tmp_path / "a", seconds=0, rows=10), fake_run(tmp_path / "b", rows=10)]
    browser.open(report.compare(folders, tmp_path / "page.html").as_uri())
    browser.wait("return document.querySelectorAll('.u-over').length >= 3")
    hidden = "return document.querySelector(arguments[0]).parentElement.hidden"
    assert browser.run(hidden, ".against") and browser.run(hidden, ".smoothing")
    assert browser.errors() == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_no_violation_of_accessibility(browser, tmp_path, dark):
    folders = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", rate=0.2)]
    browser.open(report.compare(folders, tmp_path / "page.html").as_uri(), dark=dark)
    assert browser.violations() == []
