"""Headless Chromium for tests of pages: the fixture `browser`, and `window` for scripts.

Selenium drives Debian's `chromium` with the matching `chromium-driver`. tests/conftest.py makes the
fixture available everywhere. The browser can reach only this machine, and records all requests.
Tests that need it are skipped if it is not installed, except in continuous integration.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

AXE = Path(__file__).resolve().parent.parent / ".venv" / "node_modules" / "axe-core" / "axe.min.js"


class Browser:
    """One window of the browser.

    Attributes:
      driver: Selenium's, for everything else.
    """

    def __init__(self, driver):
        self.driver = driver

    def open(self, address, width=1200, height=900, dark=False):
        """Load a page into a window of this size and color scheme; discard earlier logs."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.prefer(dark)
        self.driver.get("about:blank")
        self.errors()
        self.requests()
        self.driver.get(str(address))

    def prefer(self, dark):
        """Set `prefers-color-scheme`."""
        self._cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def errors(self):
        """Errors and warnings in the console since the last call."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]

    def requests(self):
        """Addresses requested since the last call, except data and blobs, which use no network."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        sent = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        sockets = [
            event["params"]["url"]
            for event in events
            if event["method"] == "Network.webSocketCreated"
        ]
        return [
            address
            for address in sent + sockets
            if not address.startswith(("data:", "blob:", "about:"))
        ]

    def run(self, script, *arguments):
        """Return the result of a JavaScript function's body; promises are awaited."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector):
        """The first element that matches a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector):
        """All elements that match a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def drag(self, selector, *points):
        """Press the mouse button at the first point, move along all others, and release it.

        Args:
          selector: of the element, which is scrolled to the middle of the window.
          *points: (x, y), shares of its width and height.
        """
        box = self.run(
            "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'}); return "
            "arguments[0].getBoundingClientRect().toJSON()",
            self.find(selector),
        )
        places = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in points
        ]
        self._mouse("mouseMoved", places[0])
        self._mouse("mousePressed", places[0], button="left", clickCount=1)
        for place in places[1:]:
            self._mouse("mouseMoved", place, button="left", buttons=1)
        self._mouse("mouseReleased", places[-1], button="left", clickCount=1)

    def _mouse(self, kind, place, **more):
        self._cdp("Input.dispatchMouseEvent", type=kind, **place, **more)

    def press(self, *keys):
        """Type keys, such as "a" or selenium.webdriver.Keys.TAB, where the focus is."""
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.driver)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def wait(self, script, seconds=20):
        """Wait until the body of a JavaScript function returns a true value, and return it."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(
            lambda _: self.run(script), f"never came true: {script}"
        )

    def violations(self):
        """(rule, element) of each accessibility violation that axe-core finds, all folds open.

        Skips the test if axe-core is not installed.
        """
        if not AXE.is_file():
            pytest.skip(f"{AXE} does not exist: npm install --no-save --prefix .venv axe-core")
        self._cdp("Page.setBypassCSP", enabled=True)  # from the next page on
        try:
            self.driver.refresh()
            self.run("for (const fold of document.querySelectorAll('details')) fold.open = true")
            self.run(AXE.read_text())
            found = self.driver.execute_async_script("axe.run().then(arguments[0])")["violations"]
        finally:
            self._cdp("Page.setBypassCSP", enabled=False)
        return [(violation["id"], violation["nodes"][0]["html"]) for violation in found]

    def screenshot(self, path, whole=True):
        """Write a PNG file of the whole page, or of the part in the window."""
        path.write_bytes(
            base64.b64decode(
                self._cdp("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
            )
        )

    def _cdp(self, command, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)


@contextlib.contextmanager
def window(chromium, chromedriver):
    """A `Browser` of these programs, which ends with the block."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",  # containers run as root, which the sandbox refuses
        "--disable-dev-shm-usage",  # which is small in containers
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    ):
        options.add_argument(argument)
    # Its own process group, so that all of its processes can be ended together.
    service = webdriver.ChromeService(chromedriver, popen_kw={"start_new_session": True})
    driver = webdriver.Chrome(options, service)
    group = service.process.pid
    try:
        yield Browser(driver)
    finally:
        driver.quit()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


@pytest.fixture(scope="session")
def browser():
    """A `Browser`; `browser.open(address)` opens a page in it."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        missing = (
            "chromium and chromedriver are not installed (apt-get install chromium chromium-driver)"
        )
        if os.environ.get("CI", "false") not in ("false", "0", ""):
            pytest.fail(missing)
        pytest.skip(missing)
    with window(chromium, chromedriver) as found:
        yield found
