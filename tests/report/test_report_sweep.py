"""The page of a sweep: its table and curves, its size, and how long it is watched."""

import json
import re

import numpy as np
import pytest

from jaxconv import results
from jaxconv.report import write as report
from jaxconv.results import over_seeds
from jaxconv.train.workdir import locked, read_metrics

pytestmark = pytest.mark.slow


def fake_sweep(folder, runs, rows, state="waiting", steps=0):
    """A sweep over seeds, whose runs have each logged `rows` rows."""
    random = np.random.default_rng(0)
    table = []
    for seed in range(runs):
        name = f"optimizer.learning_rate=0.01,seed={seed}"
        if rows:
            (folder / name).mkdir()
            numbers = random.random((rows, 4)).tolist()
            lines = [
                {
                    "step": 10 * n,
                    "train/loss": a,
                    "train/top1": b,
                    "learning_rate": c,
                    "images_per_second": 100 * d,
                }
                | (
                    {"eval/loss": b, "eval/top1": seed / runs}
                    if n % max(1, rows // 20) == 0
                    else {}
                )
                for n, (a, b, c, d) in enumerate(numbers, 1)
            ]
            (folder / name / "metrics.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in lines)
            )
        row = {
            "run": name,
            "values": {"optimizer.learning_rate": 0.01, "seed": seed},
            "state": state,
            "step": 0,
            "steps": steps,
            "why": "",
        }
        table.append(row | dict.fromkeys(("loss", "top1", "best_top1", "images_per_second")))
    (folder / "sweep.json").write_text(json.dumps({"runs": table, "over_seeds": []}))
    return [folder / row["run"] for row in table]


def test_watch_of_a_sweep_without_a_process_of_its_own(tmp_path):
    """Slurm starts each run alone: watch continues until all have finished or failed."""
    first, second = fake_sweep(tmp_path, 2, 0, steps=9)
    pages = report.watch(tmp_path, every=0.01)
    text = next(pages).read_text()
    assert "2 waiting" in text and "Reload every" in text
    first.mkdir()
    (first / "metrics.jsonl").write_text('{"step": 8, "train/loss": 0.0625}\n')
    with locked(first):
        text = next(pages).read_text()
        assert "1 running, 1 waiting" in text and "0.0625" in text
    assert "2 waiting" in next(pages).read_text()  # preempted: it has saved nothing
    (first / "metrics.jsonl").write_text('{"step": 9, "eval/loss": 0.0625, "eval/top1": 1.0}\n')
    (first / "checkpoints" / "9").mkdir(parents=True)
    text = next(pages).read_text()
    assert "1 finished, 1 waiting" in text and "Reload every" in text
    second.with_name(f"{second.name}.log").write_text(
        "$ jaxconv train\njaxconv: the <disk> is full\nstopped with exit code 1\n"
    )
    [last] = [path.read_text() for path in pages]
    assert (
        "1 finished, 1 failed" in last
        and "the &lt;disk&gt; is full" in last
        and "Reload every" not in last
    )


def test_a_sweep_that_was_cancelled_in_slurm_is_not_waited_for(tmp_path, monkeypatch):
    """Run by run: Slurm still has the second, until it has forgotten the job."""
    names = [folder.name for folder in fake_sweep(tmp_path, 3, 0, steps=9)]
    lines = [f"jaxconv train --config=x.py '--workdir={tmp_path / name}'" for name in names[1:]]
    (tmp_path / "commands.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "slurm_job.txt").write_text("42\n")
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    monkeypatch.setenv("PATH", f"{squeue.parent}:/usr/bin:/bin")
    assert results.queued_runs(tmp_path) is None  # no Slurm here
    for answer, queued in {
        f'test "$3" = --jobs=42 && echo 1 && touch {tmp_path}/asked': {names[1]},
        "echo 1; echo 2": {*names[1:]},
        "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1": set(),
        "echo 'Unable to contact slurm controller' >&2; exit 1": None,
    }.items():
        squeue.write_text(f"#!/bin/sh\n{answer}\n")
        squeue.chmod(0o755)
        assert results.queued_runs(tmp_path) == queued, answer
    assert (tmp_path / "asked").is_file()
    monkeypatch.setattr(report, "_ASK_EVERY", 1e-9)
    squeue.write_text("#!/bin/sh\necho 1\n")
    pages = report.watch(tmp_path, every=0.01)
    text = next(pages).read_text()
    assert "2 cancelled" in text and "1 waiting" in text and "Reload every" in text
    squeue.write_text("#!/bin/sh\n")
    [last] = [path.read_text() for path in pages]
    assert "3 cancelled" in last and "Reload every" not in last


def test_watch_of_a_sweep_with_a_process_of_its_own_ends_with_it(tmp_path):
    first, _ = fake_sweep(tmp_path, 2, 0, steps=9)
    lock = locked(tmp_path)
    pages = report.watch(tmp_path, every=0.01)
    assert "Reload every" in next(pages).read_text()
    lock.close()
    assert ["Reload every" in path.read_text() for path in pages] == [False]
    first.mkdir()
    with locked(first):  # someone resumes one of its runs
        pages = report.watch(tmp_path, every=0.01)
        assert "Reload every" in next(pages).read_text()
    assert len(list(pages)) == 1


def test_watch_of_a_sweep_reads_again_the_runs_that_have_logged(tmp_path, monkeypatch):
    first, second = fake_sweep(tmp_path, 2, 5)
    read = []
    for module in (report, results):
        monkeypatch.setattr(
            module, "read_metrics", lambda folder: read.append(folder) or read_metrics(folder)
        )
    pages = report.watch(tmp_path, every=0.01)
    next(pages)
    assert set(read) == {first, second}
    read.clear()
    with open(second / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "train/loss": 0.03125}\n')
    assert "0.03125" in next(pages).read_text() and set(read) == {second}


def test_watch_of_a_sweep_writes_when_one_of_its_runs_logs(tmp_path):
    [folder] = fake_sweep(tmp_path, 1, 1)
    path = folder / "metrics.jsonl"
    with locked(tmp_path):
        pages = report.watch(tmp_path, every=0.01)
        assert "0.0625" not in next(pages).read_text()
        with open(path, "a") as file:
            file.write('{"step": 2, "train/loss": 0.0625}\n')
        assert "0.0625" in next(pages).read_text()


def test_tables_of_a_sweep_are_sorted_by_mouse_and_keys(browser, tmp_path):
    from selenium.webdriver import Keys

    fake_sweep(tmp_path, 12, 1)
    (tmp_path / "optimizer.learning_rate=0.01,seed=7" / "metrics.jsonl").write_text(
        ""
    )  # it has no figures
    path = report.report(tmp_path)
    browser.open(path.as_uri())

    def seeds():
        return browser.run(
            "return [...document.querySelector('.sortable').tBodies[0].rows].map(row => "
            "Number(row.cells[1].textContent))"
        )

    def head(name):
        return browser.run(
            "return [...document.querySelectorAll('.sortable button')].find(button => "
            "button.textContent == arguments[0])",
            name,
        )

    assert seeds() == list(range(12))
    browser.run("arguments[0].click()", head("seed"))
    assert seeds() == list(range(12))
    browser.run("arguments[0].click()", head("seed"))
    assert seeds() == list(range(11, -1, -1))
    browser.run("arguments[0].focus()", head("best top-1"))
    browser.press(Keys.ENTER)
    assert seeds() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 7]
    browser.press(" ")
    assert seeds() == [11, 10, 9, 8, 6, 5, 4, 3, 2, 1, 0, 7]
    sorts = browser.run(
        "return [...document.querySelectorAll('.sortable')[0].tHead.rows[0].cells].map(cell => "
        "cell.ariaSort)"
    )
    assert [sort for sort in sorts if sort] == ["descending"] and browser.errors() == []
    assert (
        "The highest top-1 so far is 91.67 %, of optimizer.learning_rate=0.01,seed=11."
        in browser.find("body").text
    )


@pytest.mark.parametrize(("runs", "rows"), [(100, 1_000), (1_000, 100)])
def test_page_of_a_large_sweep_is_small_and_opens(browser, tmp_path, runs, rows):
    """Most of a page is its numbers; a line has as many of them for 400 rows as for 40,000."""
    fake_sweep(tmp_path, runs, rows)
    path = report.report(tmp_path)
    assert path.stat().st_size < 10_000_000
    browser.open(path.as_uri())
    browser.wait("return document.querySelectorAll('.u-over').length == 6")
    assert browser.errors() == []
    assert (
        "The 100 runs with the highest top-1 so far, of 1,000 that have begun"
        in browser.find("body").text
    ) == (runs > 100)
    # The best of them, in the order of the table.
    labels = browser.run(
        """const rows = document.querySelector('.u-legend').querySelectorAll('.u-series')
           return [...rows].slice(1).map(row => row.textContent)"""
    )
    assert [re.search(r"seed=\d+", label)[0] for label in labels] == [
        f"seed={n}" for n in range(runs - 100, runs)
    ]
    heights = browser.run(
        "return [...document.querySelectorAll('.u-legend, .scroll')].map(box => box.clientHeight)"
    )
    assert len(heights) >= 8 and max(heights) < 500
    assert len(browser.find_all("section:first-of-type table:first-of-type tbody tr")) >= runs


def test_sweep(browser, tmp_path):
    rows = [
        {"step": step, "train/loss": 1 / step, "eval/loss": 1.5 / step, "eval/top1": 0.5}
        for step in (1, 2, 3)
    ]
    runs = []
    for seed in (0, 1):
        (tmp_path / f"seed={seed}").mkdir()
        (tmp_path / f"seed={seed}" / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
        state = {"state": "waiting", "step": 3, "steps": 3, "why": ""}
        figures = {"loss": 0.5, "top1": 0.5, "best_top1": 0.5, "images_per_second": None}
        runs.append({"run": f"seed={seed}", "values": {"seed": seed}, **state, **figures})
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs, "over_seeds": over_seeds(runs)}))
    # The page shows the current states, not those of sweep.json.
    (tmp_path / "seed=0" / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "seed=1.log").write_text(
        "$ jaxconv train\njaxconv: the <disk> is full\nstopped with exit code 1\n"
    )
    path = report.report(tmp_path)
    browser.open(path.as_uri())
    browser.wait("return document.querySelectorAll('.u-over').length == 3")
    assert browser.errors() == [] and browser.requests() == [path.as_uri()]
    text = browser.find("body").text
    for said in (
        "a sweep of 2 runs",
        "1 finished, 1 failed",
        "Mean and deviation over the seeds",
        "the <disk> is full",
        "Loss, train",
    ):
        assert said in text


def test_runs_whose_files_are_gone_are_as_they_were(tmp_path):
    fake_sweep(tmp_path, 2, 0, state="finished", steps=9)
    found = json.loads((tmp_path / "sweep.json").read_text())
    found["runs"] = [
        row | {"step": 9, "loss": 0.0625, "top1": 0.75, "best_top1": 0.875} for row in found["runs"]
    ]
    (tmp_path / "sweep.json").write_text(json.dumps(found))
    text = report.report(tmp_path).read_text()
    assert "2 finished" in text and "The highest top-1 so far is 87.50 %" in text


@pytest.mark.parametrize("dark", [False, True])
def test_no_violation_of_accessibility(browser, tmp_path, dark):
    fake_sweep(tmp_path, 70, 3)
    browser.open(report.report(tmp_path).as_uri(), dark=dark)
    assert browser.violations() == []
