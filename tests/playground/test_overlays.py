"""Runs that say where things are: their mask or box over the picture."""

import numpy as np
import pytest

from jaxconv.config import load_config
from jaxconv.look.opened import open_run
from jaxconv.run import train
from jaxconv.tasks.detection.mistakes import SHOWN
from tests.conftest import rarely
from tests.playground.serving import served
from tests.playground.test_in_browser import CROSS, answered
from tests.playground.test_page import talk


@pytest.fixture(
    scope="module",
    params=rarely(["segmentation", "localization", "detection"], {"localization"}),
)
def opened(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    config = load_config(f"experiments/xo_{request.param}.py:small")
    config.log.report = config.log.progress = False
    train(config, folder)
    return open_run(folder)


def test_what_is_said_is_drawn_over_the_picture(opened):
    async def conversation(say, hear, _):
        welcome = await hear("welcome")
        assert (welcome["tests"], welcome["xo"], welcome["trains"]) == (12, False, False)
        assert welcome["pen"] == pytest.approx(-0.3)
        await say({"do": "test", "id": 1, "number": 3})
        header, picture, *_ = await hear("answer")
        found = {name: value[0] for name, value in opened.served(picture[None]).items()}
        assert "vote" not in header["votes"][0]
        shares, task = [vote["probability"] for vote in header["votes"]], opened.config.task.name
        assert task == "detection" or sum(shares) == pytest.approx(1)
        if task == "detection":
            sure = found["valid"] & (found["scores"] >= SHOWN)
            boxes = [box["box"] for box in header["overlay"]["boxes"]]
            np.testing.assert_allclose(np.reshape(boxes, (-1, 4)), found["boxes"][sure], atol=1e-3)
            best = max(found["scores"][found["valid"]], default=0)
            assert max(shares) == pytest.approx(best, abs=1e-5)
        elif task == "segmentation":
            np.testing.assert_array_equal(header["mask"], found["classes"])
            counts = [np.mean(found["classes"] == k) for k in range(3)]
            np.testing.assert_allclose(shares, counts)
            assert header["overlay"]["boxes"] == []
        else:
            best = int(np.argmax(found["probabilities"]))
            (box,) = header["overlay"]["boxes"]
            np.testing.assert_allclose(box["box"], found["boxes"][best], atol=1e-3)
            assert box["class"] == header["best"] == opened.class_names[best]
            assert "mask" not in header and header["truth"] in opened.class_names
        line = [[0.2, 0.2], [0.5, 0.5]]
        await say({"do": "draw", "id": 2, "strokes": [line], "weight": -0.3, "fit": True})
        header, picture, *_ = await hear("answer")
        # Where it was drawn: what is drawn in a scene is not centered.
        assert picture[10, 10] > 200 and picture[24, 24] < 50
        for message, words in (
            ({"do": "train", "how": "start"}, "train this one with jaxconv train"),
            ({"do": "set", "rate": 0.1}, "train this one with jaxconv train"),
            ({"do": "look", "id": 3, "network": "trained"}, "vote for classes"),
            ({"do": "sample", "id": 4, "figure": "x", "number": 0}, "choose a test image"),
        ):
            variation = {"variation": welcome["variation"]} if message["do"] == "sample" else {}
            await say(message | variation)
            assert words in (await hear("problem"))["message"]

    with served(opened, opened.config) as (_, address):
        talk(address, conversation)


def test_the_page_draws_it(opened, browser):
    with served(opened, opened.config) as (_, address):
        browser.open(f"http://{address}/", 1400, 950)
        browser.wait("return window.playground && playground.answer")
        page = browser
        for stroke in CROSS:
            page.drag("#canvas", *stroke)
        answer = answered(page)
        coloured = page.run(
            "const c = document.querySelector('#overlay'); const d = "
            "c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0; "
            "for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / (d.length / 4)"
        )
        if opened.config.task.name == "segmentation":
            inked = sum(vote["probability"] for vote in answer["votes"][1:])
            assert coloured == pytest.approx(inked, abs=1e-3)
        else:
            assert (coloured > 0) == bool(answer["overlay"]["boxes"])
        assert page.find("#verdict").text.startswith(answer["overlay"]["said"])
        assert not page.find("#training").is_displayed()
        assert not page.find("[data-how=start]").is_displayed()
        assert page.find("#clear").is_displayed() and not page.find("#samples").is_displayed()
        assert browser.errors() == []
