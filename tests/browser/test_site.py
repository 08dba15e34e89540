"""The atlas site in a real browser: what a reader does with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open

pytestmark = pytest.mark.browser
ROWS = "#table tbody tr:visible"
PHONE = {"viewport": {"width": 360, "height": 740}}
VERDICTS = ("verified", "refuted", "inconclusive", "undiscriminating")


def shown(page: Page) -> list[str]:
    """The visible claims as 'paper claim'."""
    links = page.locator(f"{ROWS} td:nth-child(2) a").evaluate_all(
        "all => all.map(a => a.getAttribute('href'))"
    )
    return [re.sub(r"papers/(.*)\.html#(.*)", r"\1 \2", link) for link in links]


def test_the_front_page_says_what_failed_how_sure_and_how_to_run_it_again(site: Path, visit: Open) -> None:
    page = visit(site / "index.html")
    counts = {v: int(page.locator(f".tile.{v} strong").inner_text()) for v in VERDICTS}
    assert sum(counts.values()) == 96 and all(counts.values())
    failed = page.locator("article.failed").first
    expect(failed.locator(".badge")).to_have_text("✗ refuted")
    assert re.search(r"measured .* \[.*\], wanted ", failed.inner_text())
    expect(failed.locator("code")).to_have_text(re.compile(r"^snakemake paper_\d+ --forcerun measure$"))
    # from a tile to the claims it counts
    page.locator(".tile.refuted").click()
    expect(page.locator(ROWS)).to_have_count(counts["refuted"])
    assert page.locator(f"{ROWS} .badge").all_inner_texts() == ["✗ refuted"] * counts["refuted"]
    page.locator(".tile.refuted").click()
    expect(page.locator(ROWS)).to_have_count(96)


def test_search_and_filters(site: Path, visit: Open) -> None:
    page = visit(site / "index.html")
    page.keyboard.press("/")
    page.keyboard.type("paper 23: CLAIM")  # every word, in any case
    expect(page.locator(ROWS)).to_have_count(4)
    expect(page.locator("#count")).to_have_text("4 of 96 claims")
    page.locator("#verdict").select_option("refuted")
    assert all(claim.startswith("paper_23 ") for claim in shown(page)) and len(shown(page)) < 4
    page.get_by_role("button", name="clear", exact=True).click()
    expect(page.locator(ROWS)).to_have_count(96)
    assert "#" not in page.url
    page.locator("#q").fill("no such claim")
    expect(page.locator("#nothing")).to_be_visible()
    page.locator("#nothing button").click()
    expect(page.locator("#nothing")).to_be_hidden()
    for name, value, column in (("family", "vision", 6), ("fidelity", "scaled", 6), ("kind", "speedup", 2)):
        page.locator(f"#{name}").select_option(value)
        texts = page.locator(f"{ROWS} td:nth-child({column})").all_inner_texts()
        assert texts and all(value in text for text in texts)
        page.locator(f"#{name}").select_option("")


def test_sorting(site: Path, visit: Open) -> None:
    page = visit(site / "index.html")
    asis = shown(page)
    head = page.get_by_role("button", name="measured")

    def measured() -> list[float]:
        return [
            float(v)
            for v in page.locator(f"{ROWS} td:nth-child(4)").evaluate_all("all => all.map(e => e.dataset.v)")
        ]

    head.click()
    assert measured() == sorted(measured()) and shown(page) != asis
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("measured")
    head.click()
    assert measured() == sorted(measured(), reverse=True)
    head.click()
    assert shown(page) == asis
    page.get_by_role("button", name="claimed").click()
    texts = page.locator(f"{ROWS} td:nth-child(3)").evaluate_all("all => all.map(e => e.dataset.v)")
    assert "" in texts and texts.index("") == len(texts) - texts.count("")  # without a number: at the end


def test_a_view_has_an_address(site: Path, visit: Open) -> None:
    page = visit(site / "index.html")
    page.locator("#q").fill("claim 1")
    page.locator("#family").select_option("language")
    page.get_by_role("button", name="margin").click()
    view = shown(page)
    assert view and page.url.endswith("#q=claim+1&family=language&sort=margin")
    again = visit(page.url)
    assert shown(again) == view
    assert again.locator("#q").input_value() == "claim 1"
    expect(again.locator("#claims")).to_be_in_viewport()
    # an address with nonsense shows everything
    assert len(shown(visit((site / "index.html").as_uri() + "#verdict=nonsense&sort=nonsense"))) == 96


def test_a_paper_page(site: Path, visit: Open) -> None:
    page = visit((site / "papers/paper_3.html").as_uri() + "#claim_2")
    expect(page.locator("#claim_2")).to_be_in_viewport()
    expect(page.locator("h1")).to_have_text("Paper 3: On the Convergence of Things that Converge")
    assert page.locator(".figure img").evaluate("image => image.naturalWidth") > 100
    before = page.locator(".figure img").bounding_box()
    page.get_by_role("button", name="Larger").click()
    after = page.locator(".figure img").bounding_box()
    assert before and after and after["width"] > 1.3 * before["width"]
    for name in (
        "paper's number",
        "wanted",
        "measured",
        "control",
        "cost",
        "commit",
        "steps",
        "method",
        "notes",
    ):
        assert name in page.locator("main").inner_text().lower()
    page.get_by_text(re.compile(r"^Show \d+ lines$")).click()
    assert "class Setting" in page.locator("pre").inner_text()
    assert page.get_by_role("link", name="arXiv").get_attribute("href") == "https://arxiv.org/abs/2402.10774"


def test_a_command_is_copied(site: Path, visit: Open) -> None:
    page = visit(site / "papers/paper_3.html", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the command snakemake paper_3").click()
    expect(page.get_by_text("copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "snakemake paper_3 --forcerun measure"


def test_text_of_a_claim_stays_text(site: Path, visit: Open) -> None:
    for name in ("index.html", "papers/paper_0.html"):
        page = visit(site / name)
        assert page.get_by_text("<script>window.broken = true</script> is text").count()
        assert page.evaluate("window.broken") is None


def test_dark_mode(site: Path, visit: Open) -> None:
    def dark(page: Page) -> bool:
        red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        return int(red) < 80

    page = visit(site / "index.html", color_scheme="dark")
    assert dark(page)
    page.locator("#theme").click()
    assert not dark(page)
    page.goto((site / "surprising.html").as_uri())  # what was chosen stays
    assert not dark(page)
    assert not dark(visit(site / "index.html", color_scheme="light"))


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_accessible_and_as_wide_as_the_window(site: Path, visit: Open, options: dict[str, object]) -> None:
    for name in ("index.html", "surprising.html", "papers/paper_3.html"):
        page = visit(site / name, **options)
        for details in page.locator("details").all():
            details.evaluate("element => { element.open = true; }")
        found = [
            v
            for v in Axe().run(page, options={"preload": False}).response["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert [(v["id"], v["nodes"][0]["html"], v["help"]) for v in found] == []
        assert page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        ), name


def test_the_mlflow_link_appears_with_the_run(site: Path, visit: Open) -> None:
    assert visit(site / "papers/paper_3.html").locator(".mlflow").is_hidden()
    (site / "mlflow.js").write_text(
        'globalThis.MLFLOW = {"ui": "http://here:5000", "runs": {"paper_3": ["4", "abc"]}};'
    )
    try:
        link = visit(site / "papers/paper_3.html").locator(".mlflow")
        assert link.get_attribute("href") == "http://here:5000/#/experiments/4/runs/abc"
    finally:
        (site / "mlflow.js").write_text("globalThis.MLFLOW = {};")
