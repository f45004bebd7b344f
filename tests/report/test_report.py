"""The page of a run in a browser: its content, that it is self-contained, and its accessibility."""

import base64
import dataclasses
import io
import json
import re
import shutil
from collections import Counter

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxconv.config import load_config, small
from jaxconv.data.interface import Arrays, describe
from jaxconv.drawing import parts
from jaxconv.drawing.parts import Chart, Series, Table, Text
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import Evaluation
from jaxconv.evaluation.views import View
from jaxconv.inspect import zeiler
from jaxconv.inspect.zeiler import patches_figure
from jaxconv.look.opened import OpenedNetwork
from jaxconv.look.overlays import attribution_figure
from jaxconv.report import document as page
from jaxconv.report import network_sections, sections
from jaxconv.report import write as report
from jaxconv.run import train
from jaxconv.tasks import open_task
from jaxconv.tasks.classification import sections as class_sections
from jaxconv.tasks.classification.outcomes import Outcomes
from jaxconv.train.transforms import make_transforms
from jaxconv.train.workdir import locked, read_metrics
from tests.conftest import ROOT, assert_one_line_error, command, tiny_config

pytestmark = pytest.mark.slow

# Names that would be markup, scripts or mathematics if they were not escaped.
NAMES = ("<script>alert(1)</script>", "$x$ & <img src=x onerror=alert(1)>")


def hostile_sources():
    """Dark and light squares under hostile names; some test labels are wrong, to have mistakes."""
    random = np.random.default_rng(0)

    def source(count):
        labels = np.arange(count, dtype=np.int32) % 2
        images = random.integers(0, 60, (count, 16, 16, 1)) + 150 * labels[:, None, None, None]
        return Arrays(images.astype(np.uint8), labels, NAMES)

    train_set, test_set = source(64), source(30)
    test_set.labels[::10] = 1 - test_set.labels[::10]
    return train_set, test_set


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a finished run with hostile names, including its report.html."""
    folder = tmp_path_factory.mktemp("runs") / "run <b>&'1"
    train(tiny_config(steps=24, log__report=True), str(folder), sources=hostile_sources())
    return folder


@pytest.fixture
def opened(browser, run):
    """The page in the browser; checks that the console stays without errors."""
    browser.open((run / "report.html").as_uri())
    browser.wait(
        "return document.querySelectorAll('.u-over').length == "
        "document.querySelectorAll('.plot').length"
    )
    assert browser.errors() == []
    yield browser
    assert browser.errors() == []


def test_page_stands_by_itself(opened, run):
    """It makes one request, draws all pictures and charts, shows names verbatim, and is small."""
    path = run / "report.html"
    assert opened.requests() == [path.as_uri()]
    assert path.stat().st_size < 10_000_000
    text = opened.find("body").text
    assert opened.find("h1").text == run.name and all(
        name in opened.run("return document.body.textContent") for name in NAMES
    )
    assert "finished, 24 steps" in text and "This section could not be made" not in text
    assert (
        opened.run(
            "return document.scripts.length - document.querySelectorAll('script[type]').length"
        )
        == 2
    )
    assert [heading.text for heading in opened.find_all("h2")] == [
        title
        for title, _ in (*report.FIRST, *report._of_task(sections.read_run(run)), *report.SECTIONS)
    ]
    assert len(opened.find_all("img")) >= 12
    for source in opened.run(
        "return [...document.images].map(image => [image.src, image.alt, image.naturalWidth, "
        "image.complete])"
    ):
        address, alt, width, complete = source
        assert complete and width > 50 and re.search(r"\d", alt), alt
        if not address.startswith("data:image/svg"):
            pixels = np.asarray(
                Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("L")
            )
            assert pixels.std() > 1, alt
    canvases = opened.run(
        """return [...document.querySelectorAll("canvas")].map(canvas => {
             const context = canvas.getContext("2d")
              const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data
             return [canvas.width, canvas.height, new Set(new Uint32Array(bytes.buffer)).size]
           })"""
    )
    assert len(canvases) == len(opened.find_all(".plot")) >= 5
    assert all(
        width > 200 and height > 100 and colours > 5 for width, height, colours in canvases
    ), canvases


def shown(browser):
    """The range of steps that the page announces, and whether it is the full range."""
    said = browser.find(".zoom output").text
    numbers = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", said)]
    return numbers, "all" in said


def test_the_page_repeats_the_license_of_what_draws_its_charts():
    state = {"subtitle": "", "state": "finished", "going_on": False, "written": ""}
    license = (ROOT / "jaxconv/report/uPlot.LICENSE").read_text()
    assert "Leon Sorokin" in license and license in page.html("run", [], **state)


def test_zoom_by_mouse_keys_and_buttons(opened):
    from selenium.webdriver import Keys

    whole, all_ = shown(opened)
    assert all_ and whole == [3, 24]
    before = opened.run("return document.querySelectorAll('canvas')[1].toDataURL()")
    opened.drag(".plot .u-over", (0.25, 0.5), (0.5, 0.4), (0.75, 0.5))
    (low, high, *rest), all_ = shown(opened)
    assert not all_ and rest == [3, 24] and 7 <= low <= 9 and 18 <= high <= 20
    opened.wait(
        f"return document.querySelectorAll('canvas')[1].toDataURL() != {json.dumps(before)}"
    )  # the others move along
    opened.run(
        "document.querySelector('.plot .u-over').dispatchEvent(new MouseEvent('dblclick', "
        "{bubbles: true}))"
    )
    assert shown(opened) == (whole, True)

    opened.run("document.querySelector('.plot').focus()")
    opened.press("+")
    (low, high, *_), _ = shown(opened)
    assert (low, high) == (8, 19)
    opened.press(Keys.ARROW_RIGHT)
    assert shown(opened)[0][:2] == [14, 24]
    opened.press(Keys.ARROW_LEFT, "-", "-")
    assert shown(opened) == (whole, True)
    opened.press("+", "0")
    assert shown(opened) == (whole, True)

    opened.find("[data-zoom=in]").click()
    assert not shown(opened)[1]
    opened.find("[data-zoom=all]").click()
    assert shown(opened) == (whole, True)


def test_lines_are_hidden_and_scales_changed_by_keyboard(opened):
    from selenium.webdriver import Keys

    def picture():
        return opened.run("return document.querySelector('canvas').toDataURL()")

    whole = picture()
    opened.run("document.querySelector('.u-legend th[role=button]').focus()")
    opened.press(Keys.ENTER)
    opened.wait(f"return document.querySelector('canvas').toDataURL() != {json.dumps(whole)}")
    opened.press(" ")
    opened.wait(f"return document.querySelector('canvas').toDataURL() == {json.dumps(whole)}")
    opened.run("document.querySelector('.log').focus()")
    opened.press(" ")
    opened.wait(f"return document.querySelector('canvas').toDataURL() != {json.dumps(whole)}")
    opened.press(" ")
    opened.wait(f"return document.querySelector('canvas').toDataURL() == {json.dumps(whole)}")


def test_page_of_a_run_that_goes_on_follows_it_when_told(browser, run, tmp_path):
    """It reloads when requested, and keeps the zoom."""
    folder = tmp_path / "going"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report.html", "checkpoints"))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    with locked(folder):
        path = report.report(folder)
        browser.open(path.as_uri())
        browser.find("[data-zoom=in]").click()
        zoomed, _ = shown(browser)
        browser.find("#follow").click()
        (folder / "metrics.jsonl").write_text("".join(lines))
        report.report(folder)
        browser.wait("return document.querySelector('.zoom output')?.textContent.endsWith('to 24')")
    assert shown(browser)[0][:2] == zoomed[:2] and browser.run(
        "return document.querySelector('#follow').checked"
    )
    browser.find("#follow").click()
    assert browser.errors() == [] and set(browser.requests()) == {path.as_uri()}


def test_light_and_dark(browser, run):
    def colours():
        style = "getComputedStyle(document.body)"
        return browser.run(
            f"return [{style}.backgroundColor, {style}.color, "
            "document.querySelector('canvas').toDataURL()]"
        )

    browser.open((run / "report.html").as_uri(), dark=False)
    light = colours()
    browser.prefer(dark=True)
    browser.wait("return getComputedStyle(document.body).backgroundColor == 'rgb(20, 22, 26)'")
    browser.wait(f"return document.querySelector('canvas').toDataURL() != {json.dumps(light[2])}")
    dark = colours()
    assert all(a != b for a, b in zip(light, dark, strict=True))
    choose = (
        "const box = document.querySelector('#theme'); box.value = arguments[0]; "
        "box.dispatchEvent(new Event('change'))"
    )
    browser.run(choose, "light")
    browser.wait(f"return document.querySelector('canvas').toDataURL() == {json.dumps(light[2])}")
    browser.driver.refresh()
    assert browser.find("#theme").get_attribute("value") == "light" and colours()[:2] == light[:2]
    browser.run(choose, "light dark")
    assert colours()[:2] == dark[:2]


def test_drawings_are_dark_in_the_dark_and_photographs_keep_their_colours(browser, run):
    def filters():
        return browser.run(
            """const find = kind => document.querySelector(`img[src^="data:image/${kind}"]`)
               const of = kind => getComputedStyle(find(kind)).filter
               return [of("svg"), of("png")]"""
        )

    browser.open((run / "report.html").as_uri(), dark=False)
    assert filters() == ["none", "none"]
    browser.prefer(dark=True)
    browser.wait("return document.documentElement.classList.contains('dark')")
    drawing, photograph = filters()
    assert "invert" in drawing and "brightness" in photograph and "invert" not in photograph
    choose = (
        "const box = document.querySelector('#theme'); box.value = arguments[0]; "
        "box.dispatchEvent(new Event('change'))"
    )
    browser.run(choose, "light")
    assert filters() == ["none", "none"]
    browser.prefer(dark=False)
    browser.run(choose, "dark")
    assert filters() == [drawing, photograph]
    browser.run(choose, "light dark")


def test_read_by_keyboard(opened):
    """The skip link comes first; the focus then follows the order of the page, visibly."""
    from selenium.webdriver import Keys

    opened.press(Keys.TAB)
    assert opened.run("return document.activeElement.className") == "skip"
    assert opened.run("return document.activeElement.getBoundingClientRect().left >= 0")
    opened.press(Keys.ENTER)
    assert opened.run("return document.activeElement.id") == "main"
    order = []
    for _ in range(12):
        opened.press(Keys.TAB)
        place, outline = opened.run(
            """const at = document.activeElement
               const place = [...document.querySelectorAll("*")].indexOf(at)
                return [place, getComputedStyle(at).outlineStyle]"""
        )
        order.append(place)
        assert outline != "none"
    assert order == sorted(set(order))


@pytest.mark.parametrize("dark", [False, True])
def test_no_violation_of_accessibility(browser, run, dark):
    browser.open((run / "report.html").as_uri(), dark=dark)
    assert browser.violations() == []


def test_narrow_page_is_not_wider_than_the_window(browser, run):
    browser.open((run / "report.html").as_uri(), width=400)
    assert browser.run("return document.documentElement.scrollWidth") == 400


def test_page_without_scripts_has_the_numbers(run):
    text = (run / "report.html").read_text()
    last = read_metrics(run)[-1]
    assert page.short_number(last["eval/loss"]) in text and "<td" in text
    assert (
        not re.search(r"""(src|href)=["']?(https?:)?//""", text) and "alert(1)</script>" not in text
    )


def test_names_of_the_config_are_escaped(run):
    opened = sections.read_run(run)
    opened.config.unlock()
    opened.config.model.kwargs.own = "<script>alert(2)</script>"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "SECTIONS", (("Config", sections.config),))
        text = report.render(opened)
    assert "alert(2)" in text and "<script>alert(2)" not in text


def test_section_that_fails_is_said_and_the_others_stand(run, tmp_path, caplog, monkeypatch):
    def fails(run):
        raise ValueError("<no> such thing")

    def nothing(run):
        raise sections.LeftOutError("the network has none")

    monkeypatch.setattr(
        report, "SECTIONS", (("Broken", fails), ("Filters", nothing), ("Curves", sections.curves))
    )
    monkeypatch.setattr(report, "FIRST", ())
    monkeypatch.setattr(report, "_of_task", lambda run: ())
    text = report.report(run, tmp_path / "page.html").read_text()
    assert (
        "This section could not be made: ValueError: &lt;no&gt; such thing" in text
        and "Loss" in text
    )
    assert re.search(r"Left out.*Filters.*the network has none", text, re.DOTALL)
    assert [record.getMessage() for record in caplog.records] == [
        "report.html: broken: ValueError: <no> such thing"
    ]


def test_training_ends_well_whatever_becomes_of_the_page(tmp_path, caplog, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "report", fails)
    result = train(tiny_config(steps=4, log__report=True), str(tmp_path / "run"))
    assert result["examples"] == 30
    assert [r.getMessage() for r in caplog.records if "report" in r.getMessage()] == [
        "report.html was not written: OSError: [Errno 28] No space left on device"
    ]


def test_run_without_a_checkpoint_or_a_number(run, tmp_path):
    folder = tmp_path / "begun"
    shutil.copytree(
        run, folder, ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl", "report.html")
    )
    text = report.report(folder).read_text()
    assert "stopped at step 0 of 24" in text and "could not be made" not in text
    for why in (
        "the run has not been evaluated yet",
        "the run has logged no numbers yet",
        "the run has no checkpoint yet",
    ):
        assert why in text


def test_run_without_a_checkpoint_has_what_was_logged(run, tmp_path):
    folder = tmp_path / "begun"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    text = report.report(folder).read_text()
    assert page.short_number(read_metrics(run)[-1]["eval/loss"]) in text
    assert (
        "There are no intervals: the run has no checkpoint yet." in text
        and "could not be made" not in text
    )


def test_page_without_the_weights(run, tmp_path, monkeypatch):
    """The first of several processes writes it without restoring, which would need all of them."""
    monkeypatch.setattr(sections, "evaluate_run", None)
    monkeypatch.setattr(sections.opened, "open_run", None)
    text = report.report(
        run, tmp_path / "page.html", weights=False, source=hostile_sources()[1]
    ).read_text()
    assert "could not be made" not in text and text.count("the run has several processes") == 8


def test_watch_writes_when_something_is_logged_and_ends_with_the_run(run, tmp_path):
    folder = tmp_path / "going"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report.html"))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
    lock = locked(folder)
    pages = report.watch(folder, every=0.01)
    first = next(pages).read_text()
    assert "running at step" in first and "Reload every" in first
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(lines[2:])
    second = next(pages).read_text()
    assert "finished, 24 steps" in second and "Reload every" not in second
    lock.close()
    assert [path.read_text().count("finished, 24 steps") for path in pages] == [
        2
    ]  # the title and the page: once more, then never


def test_page_of_a_run_that_was_ended_says_so(run, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report.html", "checkpoints"))
    lock = locked(folder)
    pages = report.watch(folder, every=0.01)
    assert "running at step 24" in next(pages).read_text()
    lock.close()
    assert "stopped at step 24" in next(pages).read_text() and list(pages) == []


@pytest.fixture
def same_drawings(monkeypatch):
    """Make pages independent of the time and of chance."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "1")
    monkeypatch.setattr(report, "_now", lambda: "now")


def test_watch_evaluates_a_checkpoint_once(tmp_path, monkeypatch, same_drawings):
    """It does so however often the run logs, and the page equals one made from scratch."""
    folder, aside, done = tmp_path / "run", tmp_path / "24", Counter()

    def count(module, name):
        made = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, **kwargs: done.update([name]) or made(*args, **kwargs)
        )

    train(tiny_config(steps=24), str(folder))
    (folder / "checkpoints" / "24").rename(aside)
    for module, name in (
        (sections, "evaluate_run"),
        (network_sections, "integrated_gradients"),
        (class_sections, "accuracy_of_classes"),
    ):
        count(module, name)
    with locked(folder):
        pages = report.watch(folder, every=0.01)
        text = next(pages).read_text()
        assert "Checkpoint of step 20 on all" in text and "could not be made" not in text
        for loss in (0.0625, 0.03125):
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(
                    json.dumps(
                        {"step": 24, "train/loss": loss, "eval/loss": loss, "eval/top1": 1 - loss}
                    )
                    + "\n"
                )
            text = next(pages).read_text()
            # It shows the newly logged values next to the metrics of the checkpoint.
            assert str(loss) in text and f"{100 - 100 * loss:.2f} %" in text
        assert done == {"evaluate_run": 1, "integrated_gradients": 3, "accuracy_of_classes": 1}
        assert text == report.report(folder, tmp_path / "page.html").read_text()
        assert done["evaluate_run"] == 2
        aside.rename(folder / "checkpoints" / "24")
        text = next(pages).read_text()
        assert "Checkpoint of step 24 on all" in text and done == {
            "evaluate_run": 3,
            "integrated_gradients": 9,
            "accuracy_of_classes": 3,
        }
        assert text == report.report(folder, tmp_path / "page.html").read_text()


def test_what_was_kept_is_made_again_where_its_version_differs():
    kept, made = sections.Memo(), []

    def make():
        made.append(1)
        return len(made)

    assert [
        kept.once("a", 1, make),
        kept.once("a", 1, make),
        kept.once("b", 1, make),
        kept.once("a", 2, make),
    ] == [1, 1, 2, 3]

    def fails():
        raise ValueError("not now")

    with pytest.raises(ValueError):
        kept.once("c", 1, fails)
    assert kept.once("c", 1, make) == 4


def test_page_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("the page before")
    monkeypatch.setattr(
        "os.replace", lambda *names: (_ for _ in ()).throw(OSError(13, "Permission denied"))
    )
    with pytest.raises(OSError):
        page.write(path, "half")
    assert path.read_text() == "the page before" and list(tmp_path.iterdir()) == [path]


def test_command(run, tmp_path):
    process = command("report", f"--workdir={run}", f"--out={tmp_path / 'page.html'}")
    assert process.stdout.strip() == str(tmp_path / "page.html") and process.returncode == 0, (
        process.stderr
    )
    # The config names another source than the run was trained on: what needs examples is left out.
    text = (tmp_path / "page.html").read_text()
    assert "could not be made" not in text, re.findall("[^<>]*could not be made[^<>]*", text)
    assert "There are no intervals: " in text, re.findall("There are no[^<>]*", text)
    assert_one_line_error(command("report", f"--workdir={tmp_path}"), 2, "holds no run")


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report.report(tmp_path)


class Photographs(Arrays):
    """A few images reused for many examples, with the 1/f spectrum of photographs.

    The spectrum determines the size of compressed pictures.
    """

    def read(self, i, key=(0, 0)):
        return super().read(i % len(self.images), key)


def photographs(count, size, classes):
    random, f = np.random.default_rng(0), np.fft.fftfreq(size)
    spectrum = 1 / np.maximum(np.hypot(f[:, None], f[None]), 1 / size)[None, :, :, None]
    images = np.fft.ifft2(
        spectrum * np.fft.fft2(random.normal(size=(20, size, size, 3)), axes=(1, 2)), axes=(1, 2)
    ).real
    images = np.clip(128 + 50 * images / images.std(), 0, 255).astype(np.uint8)
    return Photographs(
        images,
        np.arange(count, dtype=np.int32) % classes,
        tuple(f"n{k:08}, a class of things" for k in range(classes)),
    )


@pytest.mark.full
def test_page_of_a_thousand_classes_of_large_images_is_small(tmp_path):
    """An untrained network with mostly correct logits: its pictures are as large as ImageNet's."""
    source, config = (
        photographs(2_000, 224, 1_000),
        load_config(str(ROOT / "experiments" / "imagenet_alexnet.py"), []),
    )
    with config.unlocked():
        config.model.name, config.model.kwargs = (
            "text:conv11-32/4 relu maxpool3/2 conv5-32 relu maxpool3/2 conv3-64 relu fc",
            {},
        )
    data = {**describe(source), "train_examples": 1_281_167, "eval_examples": 50_000}
    task = open_task(config, data)
    model, (_, preprocess) = task.model(), make_transforms(config, data)
    variables = model.init(jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32), train=False)
    logits = np.random.default_rng(1).normal(size=(len(source), 1_000)).astype(np.float32)
    logits[np.arange(len(source)), source.labels] += 4
    outcomes = Outcomes(source.labels, logits, source.class_names)
    rows = [
        {"step": 100 * n, "train/loss": 1 / n, "train/top1": 1 - 1 / n, "images_per_second": n % 7}
        for n in range(1, 20_000)
    ]
    run = sections.RunReport(
        tmp_path,
        config,
        data,
        [*rows, rows[-1] | {"eval/loss": 1.0, "eval/top1": 0.75}],
        checkpoint=(1, 0),
    )
    run.once(
        "looked",
        lambda: OpenedNetwork(
            "", model, variables, preprocess, task, source.class_names, config, data, tmp_path
        ),
    )
    run.once(
        "evaluation",
        lambda: Evaluation("", "xo", "test", 1, View(), task, {}, outcomes, {}, source, lambda: 0),
    )
    (tmp_path / "versions.json").write_text("[]")
    text = report.render(run)
    assert "could not be made" not in text and "Left out" not in text
    assert 1_000_000 < len(text) < 10_000_000, len(text)
    # The metrics are of some examples, but the best during training is of all: the page says so.
    assert (
        "on 2,000 (evenly spread) of 50,000 examples of test" in text
        and "at step 1,999,900, on all 50,000" in text
    )


def test_charts_of_an_ensemble_and_of_one_s_own_metric(run):
    """The mean is a line in a band of its members; the averaged prediction is dashed.

    Each custom metric has its own chart.
    """
    rows = [
        {
            "step": step,
            "train/loss": 2.0,
            "train/loss/0": 1.0,
            "train/loss/1": 3.0,
            "eval/loss": 1.0,
            "eval/ensemble_loss": 0.5,
        }
        | {
            "eval/margin": 0.1,
            "eval/margin/0": 0.0,
            "eval/margin/1": 0.2,
            "eval/ensemble_margin": 0.1,
        }
        for step in (1, 2)
    ]
    loss, margin = sections.curves(dataclasses.replace(sections.read_run(run), rows=rows))
    assert [(series.label, series.look, series.ys[0]) for series in loss.series] == [
        ("", "edge", 3.0),
        ("", "edge", 1.0),
        ("train", "thin", 2.0),
        ("eval", "thick", 1.0),
        ("averaged", "dashed", 0.5),
    ]
    assert (margin.title, margin.unit) == ("margin", "custom metric")


def test_numbers_behind_a_chart():
    xs = list(range(1, 1001))
    chart = Chart(
        "Loss",
        "nats",
        "step",
        [
            Series("train", xs, [1 / x for x in xs]),
            Series("eval", [500, 1000], [0.5, 0.25], 1, "thick"),
        ],
    )
    table = page.numbers(chart)
    assert table.rows[0] == ["step", "train", "eval"] and "of 1,000 rows" in table.caption
    assert table.rows[1] == ["1", "1", "-"] and table.rows[-1] == ["1,000", "0.001", "0.25"]
    said = page.in_words(chart)
    assert "eval goes from 0.5 at step 500 to 0.25 at step 1,000" in said


def test_points_keep_peaks_and_leave_out_what_is_no_number():
    xs = list(range(100_000))
    ys = [0.0] * 100_000
    ys[77_777], ys[5] = 9.0, float("nan")
    drawn = page.points(Chart("Loss", "nats", "step", [Series("train", xs, ys)]))
    [line] = drawn["series"]
    assert (
        len(line["x"]) <= page.MOST_POINTS
        and (77_777, 9.0) in zip(line["x"], line["y"], strict=True)
        and 5 not in line["x"]
    )
    assert (line["x"][0], line["x"][-1]) == (0, 99_999)
    json.dumps(drawn, allow_nan=False)


@pytest.mark.parametrize(("count", "each"), [(1, 8_000), (2, 4_000), (40, 200), (100, 200)])
def test_series_share_the_points_of_a_chart_and_keep_their_peaks(count, each):
    """Where they were logged at different steps too: no series has an entry for another's steps."""
    lines = []
    for number in range(count):
        ys = [1.0] * 9_000
        ys[50 * number + 7], ys[50 * number + 11] = 9.0, -9.0
        lines.append(Series(str(number), range(number, 9_000 * 3 + number, 3), ys, number))
    drawn = page.points(Chart("Loss", "nats", "step", lines))["series"]
    assert all(each / 3 < len(line["x"]) == len(line["y"]) <= each for line in drawn)
    assert all({9.0, -9.0} <= set(line["y"]) for line in drawn)
    assert [line["x"][line["y"].index(9.0)] for line in drawn] == [
        3 * (50 * number + 7) + number for number in range(count)
    ]


def test_many_lines_are_said_in_short():
    lines = [Series(f"seed={n}", [1, 2, 3], [3.0, n, 1.0 + n]) for n in range(50)]
    chart = Chart("Loss", "nats", "step", [*lines, Series("empty", [], [])])
    assert page.in_words(chart) == (
        "Loss (nats) against step: 50 lines, with final values from 1 (seed=0) to 50 (seed=49). "
        "The table below lists them all."
    )
    table = page.numbers(chart)
    assert len(table.rows) == 51 and table.rows[0][:3] == ("line", "first", "last")
    assert table.rows[10] == ("seed=9", "3", "10", "3", "3", "1", "10", "3")


def test_figure_becomes_a_drawing_or_pixels():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([1, 2, 3])
    drawing = parts.picture(figure, "a line from 1 to 3")
    assert drawing.source.startswith("data:image/svg+xml") and (drawing.width, drawing.height) == (
        384,
        288,
    )
    figure.axes[0].imshow(np.zeros((3, 3)))
    assert parts.picture(figure, "black").source.startswith("data:image/png")
    # A large picture of a photograph is compressed with loss, at the same size.
    noise = np.random.default_rng(0).random((300, 400, 3))
    figure.axes[0].imshow(noise)
    kind, _, data = parts.picture(figure, "noise").source.partition(",")
    assert kind == "data:image/webp;base64" and Image.open(
        io.BytesIO(base64.b64decode(data))
    ).size == (600, 450)


def test_empty_text_and_table_are_pages_too(browser, tmp_path):
    parts = [Text("a < b"), Table("numbers", [("a", "b"), ("<i>", "1")])]
    text = page.html(
        "t", [page.Section("A & B", parts)], subtitle="", state="", going_on=False, written=""
    )
    (tmp_path / "page.html").write_text(text)
    browser.open((tmp_path / "page.html").as_uri())
    assert browser.errors() == [] and browser.find("main").text.split("\n")[:2] == [
        "A & B",
        "a < b",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "without"),
    [
        ("xo", ["ensemble.size=2"], set()),
        pytest.param("volume", [], {"Patches"}, marks=pytest.mark.full),
        ("sentences", [], {"Patches"}),
    ],
)
def test_runs_of_every_kind(tmp_path, caplog, one_device, name, changes, without):
    """An ensemble and networks on volumes and texts have a page without meaningless sections."""
    flags = ["log.tensorboard=False", "log.progress=False", "log.report=True", *changes]
    config = load_config(
        f"{ROOT / 'experiments' / name}.py" + ("" if name == "xo" else ":small"), flags
    )
    if name == "xo":
        config = small(config, 16, 1, filters=(4, 8))
    train(config, str(tmp_path / "run"), devices=one_device)
    assert not [
        record.getMessage()
        for record in caplog.records
        if record.getMessage().startswith("report.html")
    ]
    text = (tmp_path / "run" / "report.html").read_text()
    titles = set(re.findall(r"<h2[^>]*>([^<]*)</h2>", text))
    assert {
        "Result",
        "Predictions",
        "Calibration",
        "Filters",
        "Activations",
        "Network",
    } - titles == set()
    assert not without & titles and all(
        f'<th scope="row">{section}</th>' in text for section in without
    )
    assert ("The networks of the ensemble" in text) == ("seed 1" in text) == bool(changes)


def test_part_of_the_examples(run):
    """It evaluates as many as requested, evenly spread, and says so."""
    opened = sections.read_run(run, source=hostile_sources()[1], examples=7)
    assert opened.evaluation.outcomes.index.tolist() == list(range(7))
    assert [opened.evaluation.source.name(i) for i in range(7)] == [
        f"example {round(i * 29 / 6)}" for i in range(7)
    ]
    figures, table = network_sections.result(opened)
    assert "on 7 (evenly spread) of 30 examples of test" in table.caption


def test_patches_are_parts_of_images_and_attribution_says_what_they_are(run, monkeypatch):
    titles, found = [], []
    monkeypatch.setattr(
        "jaxconv.look.opened.attribution_figure",
        lambda *args: titles.append(args[2]) or attribution_figure(*args),
    )
    monkeypatch.setattr(
        zeiler, "patches_figure", lambda *args: found.append(args[0]) or patches_figure(*args)
    )
    opened = sections.read_run(run, source=hostile_sources()[1], examples=5)
    network_sections.patches(opened)
    assert max(found[0].patches.shape[2:4]) <= 8  # of 16
    outcomes = opened.evaluation.outcomes
    # Pretend that all predictions are wrong.
    object.__setattr__(outcomes, "labels", 1 - outcomes.predicted)
    network_sections.attribution(opened)
    assert len(titles) == 3 and all(
        f"(it is {NAMES[label]})" in title
        for title, label in zip(titles, outcomes.labels[1:4], strict=True)
    )
