"""A real Chromium, driven by Playwright. What a page writes to the console fails the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.driver import Unavailable, apt_install
from tests.examples import write_results

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# no sandbox: CI runs as root; nothing of it asks the network for anything
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run")  # fmt: skip
Open = Callable[..., Page]


def chromium() -> str:
    """Path of Chromium, installed with apt-get if need be. Raises Unavailable if it cannot be had."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if not found:
        apt_install("chromium", "fonts-dejavu-core")
        found = shutil.which("chromium")
    if not found:
        raise Unavailable("chromium was installed, but is not on the PATH")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        path = chromium()
    except Unavailable as error:
        pytest.skip(str(error))
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """visit(address, **context options) -> page; the console has to stay empty, and nothing may be asked of the network."""
    contexts, said = [], []

    def visit(address: str | Path, **options: object) -> Page:
        options = {"viewport": {"width": 1280, "height": 900}, **options}
        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        if isinstance(address, Path):
            address = address.as_uri()
            page.on(
                "request",
                lambda request: (
                    None if request.url.startswith(("file:", "data:")) else said.append(request.url)
                ),
            )
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of 24 papers with 96 claims: every kind with every verdict."""
    from atlas import paper
    from atlas.site.build import build

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "PAPERS", folder / "papers")
        return build(*write_results(folder, 24)).parent
