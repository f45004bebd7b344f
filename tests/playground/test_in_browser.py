"""The page in a browser: a network learns and classifies strokes; nothing foreign is loaded."""

import base64
import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from jaxconv.data import xo
from jaxconv.look.opened import open_model
from jaxconv.models import create_model
from jaxconv.playground.learner import Settings
from tests.playground.serving import served, until, xo_config

pytestmark = pytest.mark.slow

SETTINGS = Settings(filters=(8, 8), neurons=(16,))


@pytest.fixture(scope="module")
def place():
    with served(config=xo_config(24)) as (playground, address):
        playground.trainer.set(SETTINGS)
        until(lambda: playground.trainer.status == "paused" and playground.trainer.network)
        yield playground, f"http://{address}/"


@pytest.fixture
def page(place, browser):
    """The opened page; checks at the end that there was no error and no foreign request."""
    playground, address = place
    playground.trainer.pause()
    browser.open(address, 1400, 950)
    browser.wait(
        "return window.playground && playground.answer && playground.training.status == 'paused'"
    )
    yield browser
    assert browser.errors() == []
    host = address.removeprefix("http://").removesuffix("/")
    # The browser's own pages, such as that of a PNG, are not ours.
    assert all(request.split("//")[1].startswith(host) for request in browser.requests())


def press(page, how):
    page.find(f"[data-how={how}]").click()


def learned(page):
    """Train with the page's buttons until the network is accurate, unless it already is."""
    if page.run(
        "return playground.training.points.length == 0 || playground.training.points.at(-1)[2] < "
        "0.98"
    ):
        press(page, "start")
        page.wait(
            "const last = playground.training.points.at(-1); return last && last[0] >= 60 && "
            "last[2] >= 0.985",
            90,
        )
        press(page, "pause")
        page.wait("return playground.training.status == 'paused'")


def line(start, end, count=25):
    return [
        tuple(np.array(start) + (np.array(end) - np.array(start)) * share)
        for share in np.linspace(0, 1, count)
    ]


CROSS = [line((0.2, 0.25), (0.75, 0.8)), line((0.75, 0.2), (0.2, 0.8))]
RING = [[(0.5 + 0.3 * np.cos(t), 0.5 + 0.33 * np.sin(t)) for t in np.linspace(0, 2 * np.pi, 60)]]


def answered(page):
    """Wait for the answer to the last stroke."""
    page.wait("return playground.idle && !!playground.answer")
    return page.run("return playground.answer")


@pytest.mark.parametrize(("strokes", "figure"), [(CROSS, "x"), (RING, "o")])
def test_a_drawn_figure_is_told_at_every_stroke(page, strokes, figure, record_property):
    learned(page)
    page.find("#clear").click()
    before = answered(page)
    page.run("playground.latencies.length = 0")
    for stroke in strokes:
        page.drag("#canvas", *stroke)
        answer = answered(page)
        assert answer["id"] > before["id"]
        before = answer
    assert answer["best"] == figure and max(vote["probability"] for vote in answer["votes"]) > 0.9
    assert page.find("#verdict").text.startswith(figure.upper())
    bars = {
        row.find_element("css selector", "th").text: row.text for row in page.find_all("#bars tr")
    }
    assert set(bars) == {"X", "O"} and "%" in bars["X"]
    latencies = page.run("return playground.latencies")
    assert len(latencies) > 10  # many per stroke, not one at the end
    spread = np.percentile(latencies, [5, 50, 95]).round(1)
    record_property("latency_ms", spread.tolist())
    print(
        f"\nms per stroke of an {figure.upper()}: median {spread[1]}, 5% to 95% {spread[0]} to "
        f"{spread[2]}, n = {len(latencies)}"
    )
    # What is on the canvas is what was drawn: ink on the strokes, paper in the corner.
    x, y = strokes[0][len(strokes[0]) // 2]
    drawn = pixels(page, "#canvas", 100, 100)
    assert drawn[int(100 * y), int(100 * x)] == 255 and drawn[1, 1] == 0


def pixels(page, selector, width, height):
    """The grey values [height, width] of a resized copy of a canvas: reading slows a canvas."""
    values = page.run(
        "const copy = new OffscreenCanvas(arguments[1], arguments[2]), context = "
        "copy.getContext('2d', {willReadFrequently: true});"
        "context.imageSmoothingEnabled = false;"
        "context.drawImage(document.querySelector(arguments[0]), 0, 0, copy.width, copy.height);"
        "return [...context.getImageData(0, 0, copy.width, copy.height).data].filter((_, i) => i % "
        "4 == 0)",
        selector,
        width,
        height,
    )
    return np.array(values).reshape(height, width)


def test_the_maps_are_those_of_the_answer(page):
    names = [heading.text.split()[0] for heading in page.find_all("#rows h3")]
    assert names == [
        "input",
        "filters",
        "conv1_1",
        "ReLU",
        "pool1",
        "conv2_1",
        "ReLU",
        "pool2",
        "fc1",
        "fc1",
    ]
    assert not page.find("#left-out").is_displayed()
    page.run("playground.answer = null")
    page.find("#sample-o").click()
    assert answered(page)["truth"] == "o"
    shown, variation = pixels(page, "#rows canvas", 24, 24), variation_of_page(page)
    known = [xo.draw(0, "sample", 1000 + i, 24, variation)[0][..., 0] for i in range(10)]
    assert any(np.array_equal(shown, image) for image in known)
    np.testing.assert_array_equal(pixels(page, "#canvas", 24, 24), shown)


def test_the_pen_has_a_weight(page):
    page.find("#clear").click()
    page.drag("#canvas", *CROSS[0])
    answered(page)
    ink = []
    for weight in (-0.5, 0, 0.9):
        page.run(
            "const pen = document.querySelector('#pen'); pen.value = arguments[0]; "
            "pen.dispatchEvent(new Event('input'))",
            weight,
        )
        answered(page)
        ink.append(
            (pixels(page, "#rows canvas", 24, 24).sum(), pixels(page, "#canvas", 24, 24).sum())
        )
    assert all(
        before < after
        for column in zip(*ink, strict=True)
        for before, after in zip(column, column[1:], strict=False)
    )


def variation_of_page(page):
    script = (
        "return Object.fromEntries([...document.querySelectorAll('#samples input')].map((i) => "
        "[i.name, Number(i.value)]))"
    )
    return xo.Variation(**page.run(script))


def test_start_step_pause_and_begin_anew(place, page):
    playground, _ = place
    press(page, "new")
    page.wait("return playground.training.step == 0 && playground.training.status == 'paused'")
    before = page.run(
        "return document.querySelectorAll('.maps')[1].querySelector('canvas').toDataURL()"
    )
    for number in (1, 2):
        press(page, "step")
        page.wait(
            f"return playground.training.step == {number} && playground.training.status == 'paused'"
        )
    assert playground.trainer.step == 2
    page.wait("return playground.answer.step == 2")
    after = page.run(
        "return document.querySelectorAll('.maps')[1].querySelector('canvas').toDataURL()"
    )
    assert before != after  # the filters have changed
    assert len(page.run("return playground.training.points")) == 2
    assert (
        page.find("#loss circle")
        and len(page.find("#loss polyline").get_attribute("points").split()) == 2
    )
    press(page, "start")
    page.wait("return playground.training.step > 10 && playground.answer.step > 10")
    press(page, "pause")
    page.wait("return playground.training.status == 'paused'")
    step = playground.trainer.step
    assert f"paused · step {step}" in page.find("#status").text
    assert "%" in page.find("#accuracy-now").text


def set_fields(page, **values):
    page.run(
        "const fields = document.querySelector('#settings').elements;"
        "for (const [name, value] of Object.entries(arguments[0])) fields[name].value = value;"
        "fields.filters.dispatchEvent(new Event('change', {bubbles: true}))",
        values,
    )


def test_what_does_not_fit_is_said_in_the_page(place, page):
    playground, _ = place
    said = "return document.querySelector('#training-problem').textContent"
    set_fields(page, pool_window="4", pool_stride="5", filters="4, 4, 4")
    page.wait(said)
    assert page.run(said) == "pool3: (1 - 4)/5 + 1 = 0.40: a 4-wide window is larger than 1"
    set_fields(page, filters="4, x")
    page.wait(f"{said}.includes('“4, x” is not a list of whole numbers')")
    set_fields(page, pool_window="3", pool_stride="2", filters="5")
    page.wait(
        "return playground.answer.stages.length == 5 && playground.answer.stages[0].shape[2] == 5",
        90,
    )
    assert page.run(said) == "" and playground.trainer.settings.filters == (5,)
    assert "pooled stack, 5 maps of 11×11" in page.find("#rows").text
    playground.trainer.set(SETTINGS)
    until(lambda: playground.trainer.network[0].stages[-1].channels == 16)


def test_the_keyboard_and_a_finger_do_too(page):
    from selenium.webdriver import Keys

    page.run("document.querySelector('#samples [name=rotation]').focus(); playground.answer = null")
    before = variation_of_page(page).rotation
    page.press(Keys.ARROW_RIGHT)
    page.wait("return playground.answer && playground.answer.truth")
    assert variation_of_page(page).rotation == before + 1
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, select')]"
        ".filter((e) => !(e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert nameless == []
    images = page.run(
        "return [...document.querySelectorAll('[role=img]')].map((e) => "
        "e.getAttribute('aria-label'))"
    )
    assert all(images) and len(images) >= 12
    page.run(
        "document.querySelector('#canvas').scrollIntoView({block: 'center'}); playground.answer = "
        "null"
    )
    box = page.run("return document.querySelector('#canvas').getBoundingClientRect().toJSON()")

    def touch(kind, *points):
        places = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in points
        ]
        page.driver.execute_cdp_cmd(
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": places}
        )

    page.find("#clear").click()
    touch("touchStart", (0.2, 0.2))
    for share in (0.4, 0.6, 0.8):
        touch("touchMove", (share, share))
    touch("touchEnd")
    answered(page)
    assert pixels(page, "#canvas", 99, 99)[49, 49] == 255


def test_an_image_is_looked_at(page, tmp_path):
    learned(page)
    figure, _ = next(
        drawn for drawn in (xo.draw(3, "test", i, 60) for i in range(20)) if drawn[1] == 1
    )
    Image.fromarray(255 - figure[..., 0]).save(tmp_path / "x.png")
    page.find("#file").send_keys(str(tmp_path / "x.png"))
    page.wait(
        "return document.querySelector('#note').textContent.includes('the light background was "
        "made dark')"
    )
    assert page.run("return playground.answer.best") == "x"
    # A headless browser cannot drag a file, but its drop event can be dispatched.
    data = base64.b64encode((tmp_path / "x.png").read_bytes()[:80]).decode()
    page.run(
        "const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0)), transfer = new "
        "DataTransfer();"
        "transfer.items.add(new File([bytes], 'x.png', {type: 'image/png'}));"
        "document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {bubbles: true, "
        "dataTransfer: transfer}))",
        data,
    )
    page.wait(
        "return document.querySelector('#picture-problem').textContent.includes('cannot be read')"
    )


@pytest.mark.parametrize(("width", "dark"), [(1400, True), (420, False)])
def test_it_fits_dark_and_narrow(page, width, dark, place):
    page.open(place[1], width, 900, dark)
    page.wait("return window.playground && playground.answer")
    assert page.run("return document.documentElement.scrollWidth") <= width
    light = page.run(
        "const c = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number); "
        "return c[0] + c[1] + c[2] > 382"
    )
    assert light is not dark


def test_a_lost_connection_is_taken_up_again(page, place):
    playground, _ = place
    page.find("#clear").click()
    page.drag("#canvas", *CROSS[0])
    before = answered(page)
    page.run("playground.answer = null")
    said = "return document.querySelector('#connection').textContent"
    for opened in list(playground.pages):
        playground._loop.call_soon_threadsafe(opened.close, 1011, "an error")
    page.wait(said)
    assert "is lost" in page.run(said) and "ended" not in page.run(said).split(";")[0]
    page.wait("return playground.answer")  # of the same drawing, requested again
    assert page.run(said) == ""
    again = answered(page)
    assert [vote["vote"] for vote in again["votes"]] == [vote["vote"] for vote in before["votes"]]


def test_a_page_finds_the_playground_that_is_started_again(browser):
    said = "return document.querySelector('#connection').textContent"
    with served(config=xo_config(24)) as (_, address):
        browser.open(f"http://{address}/", 1200, 900)
        browser.wait("return window.playground && playground.answer")
    browser.wait(f"{said}.includes('the playground has ended. Start it again')")
    browser.run("playground.answer = null")
    with served(config=xo_config(24), port=int(address.split(":")[1])):
        browser.wait("return playground.answer", 30)
        assert browser.run(said) == ""
    browser.wait(f"{said}.includes('the playground has ended')")
    with served(
        config=xo_config(32), port=int(address.split(":")[1])
    ):  # other pictures: the page starts over
        browser.wait("return window.playground && playground.answer?.picture[0] == 32", 30)
    browser.open("about:blank")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_page_says_who_can_open_it_and_what_is_left_out(host, browser):
    looked = open_model("chain")
    model = create_model("chain", 2, filters=(4, 4), convs=10)
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32), train=False)
    looked = dataclasses.replace(looked, model=model, variables=variables, class_names=("o", "x"))
    with served(looked, xo_config(32), host) as (_, address):
        browser.open(f"http://{address}/", 1200, 900)
        browser.wait("return window.playground && playground.answer")
        limits, left_out = browser.find("#limits").text, browser.find("#left-out")
        assert limits.startswith(f"The playground listens on {host}: ")
        assert (
            ("anyone who can reach this machine" in limits)
            is (host == "0.0.0.0")
            is not ("only this machine" in limits)
        )
        shown = len(browser.find_all("#rows .stage")) - 2
        assert left_out.is_displayed() and left_out.text.startswith(f"{shown} of 42 stages: ")
        browser.open("about:blank")
