"""A real browser without a window, for pages of this machine alone: it is asked for nothing else."""

import base64
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--hide-scrollbars",
    # Whatever is not on this machine is not there.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


class Browser:
    """
    A page.

    Parameters
    ----------
    driver : selenium.webdriver.Chrome
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def size(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """As on a screen of that many pixels; below 500 as on a phone."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})

    def open(self, url: str) -> None:
        """Load it, and wait until every part has been drawn."""
        self.driver.get("about:blank")
        self.problems()  # of the page before, whose server may be gone
        self.driver.get(url)
        self.until("document.documentElement.dataset.loaded")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of an expression."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def until(self, script: str, seconds: float = 30) -> Any:
        """The value of an expression when it has become true."""
        give_up = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < give_up, f"{script} did not become true; the page says {self.text('body')[:2000]!r}"
            time.sleep(0.03)
        return value

    def text(self, selector: str) -> str:
        """What one reads there."""
        return str(self.run("document.querySelector(arguments[0]).innerText", selector))

    def problems(self) -> list[str]:
        """What the console has complained about since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        width, height = self.run("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium by selenium; skips the test where there is none."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    program, chromedriver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or chromedriver is None:
        pytest.skip("no chromium with chromedriver here: Debian's package chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = program
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = selenium.Chrome(options=options, service=Service(chromedriver))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
