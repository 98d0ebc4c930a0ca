"""Headless Chromium, for the tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from needs import lacking
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def headless(window_size: str, preferences: dict | None = None) -> Iterator[Chrome]:
    """Start Chromium with a log of its console, and end it; without Chromium there is no test.

    Args:
        window_size: "width,height" in pixels.
        preferences: Chromium's, as for downloads.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    driver = shutil.which("chromedriver")
    if not (program and driver):
        lacking("Chromium and chromedriver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for option in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{option}")
    options.add_argument(f"--window-size={window_size}")
    options.add_experimental_option("prefs", preferences or {})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()
