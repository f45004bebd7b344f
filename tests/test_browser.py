"""The test browser sees what goes wrong in a page, so that tests of our pages can fail."""

PAGE = """<!doctype html><title>x</title>
<canvas id=c width=100 height=100 style="width: 100px"></canvas>
<input>
<script>
const moves = []
for (const kind of ["mousedown", "mousemove", "mouseup"])
  document.querySelector("#c").addEventListener(kind, event =>
    moves.push([kind, event.offsetX, event.offsetY, event.buttons]))
</script>
"""


def test_sees_errors_requests_and_preferences(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    browser.open(path.as_uri(), dark=True)
    assert browser.errors() == [] and browser.requests() == [path.as_uri()]
    assert browser.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    browser.prefer(dark=False)
    assert not browser.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    browser.run(
        "console.error('so it is'); document.body.append(Object.assign(new Image(), {src: "
        "'https://example.org/x.png'}))"
    )
    browser.wait("return document.images[0].complete")
    assert any("so it is" in error for error in browser.errors())
    assert "https://example.org/x.png" in browser.requests()


def test_draws_and_types(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    browser.open(path.as_uri(), width=400)
    assert browser.run("return innerWidth") == 400
    browser.drag("#c", (0.1, 0.1), (0.5, 0.2), (0.9, 0.8))
    assert browser.run(
        "return moves.filter(([kind, x, y, buttons]) => kind != 'mousemove' || buttons)"
    ) == [
        ["mousedown", 10, 10, 1],
        ["mousemove", 50, 20, 1],
        ["mousemove", 90, 80, 1],
        ["mouseup", 90, 80, 0],
    ]
    browser.find("input").click()
    browser.press("a", "b")
    assert browser.run("return document.querySelector('input').value") == "ab"
