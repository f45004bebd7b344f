"""Take the screenshot of the playground: draw an X on the page while it trains a network; or, for a
run with masks or boxes, a smaller one.

python docs/playground.py ADDRESS FILE

Needs Selenium and Debian's chromium and chromium-driver, as the tests of pages do.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from PIL import Image

from tests.browser import window

# Two hand-drawn strokes, as fractions of the canvas.
STROKES = [
    [(0.22, 0.16), (0.3, 0.27), (0.4, 0.39), (0.51, 0.53), (0.62, 0.66), (0.72, 0.76), (0.8, 0.86)],
    [
        (0.77, 0.18),
        (0.68, 0.3),
        (0.58, 0.41),
        (0.47, 0.55),
        (0.36, 0.68),
        (0.27, 0.78),
        (0.2, 0.84),
    ],
]
# Pixels of the page that show a mask or box.
TOP = 640
# The same, a third as large and to the left.
SMALLER = [[(0.1 + 0.35 * x, 0.2 + 0.35 * y) for x, y in stroke] for stroke in STROKES]


def main(address: str, file: str) -> None:
    """Train, draw, and write the screenshot."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        raise SystemExit(
            "chromium and chromedriver are not installed (apt-get install chromium chromium-driver)"
        )
    with window(chromium, chromedriver) as page:
        page.open(address, 1300, 1000)
        page.wait("return window.playground && playground.answer", 60)
        trains = page.find("[data-how=start]").is_displayed()
        if trains:
            page.find("[data-how=start]").click()
            page.wait(
                "const last = playground.training.points.at(-1); return last && last[0] >= 150 && "
                "last[2] >= 0.97",
                300,
            )
        for stroke in STROKES if trains else SMALLER:
            page.drag("#canvas", *stroke)
        page.wait(
            "return playground.idle && playground.answer.step >= 150 && playground.training.status "
            "== 'training'"
            if trains
            else "return playground.idle",
            60,
        )
        page.run("scrollTo(0, 0)")
        page.screenshot(Path(file))
    if not trains:  # the stages below are those of any network
        with Image.open(file) as picture:
            picture.crop((0, 0, picture.width, TOP)).save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
