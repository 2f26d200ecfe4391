"""The page in a headless browser: upload, verdicts, slider, an unreadable file, a narrow window, and axe-core."""

import base64
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.serve import encoded

from negvae.runs.artifact import load_artifact
from negvae.runs.export import run_onnx
from negvae.service import run_model
from tests.conftest import blobs
from tests.service.conftest import SHAPE, served

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
NODE = Path(os.environ.get("NEGVAE_NODE", Path(__file__).parents[2] / ".node")) / "node_modules"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, live):
    """The page, whose messages to the console and whose requests to elsewhere are failures."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith((home, "data:")) else None
    )
    home = f"http://127.0.0.1:{live.port}/"
    page.set_default_timeout(60_000)
    page.goto(home)
    page.get_by_text("takes gray images of 28").wait_for()
    yield page
    context.close()
    assert wrong == []


def files(count=3):
    inliers, outliers = blobs(count, SHAPE, 9).numpy(), 255 - blobs(count, SHAPE, 8).numpy()
    good = [
        {"name": f"{kind}{number}.png", "mimeType": "image/png", "buffer": encoded(image)}
        for kind, images in (("in", inliers), ("out", outliers))
        for number, image in enumerate(images)
    ]
    return [*good, {"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG no more"}]


def uploaded(page):
    page.set_input_files("#files", files())
    page.get_by_text("6 scored, 1 could not be read.").wait_for()


def test_images_are_judged_and_the_slider_decides_anew(page):
    uploaded(page)
    cards = page.locator("#verdicts > li")
    assert cards.count() == 7
    assert page.locator("#verdicts > li.err").inner_text().startswith("broken.png")
    assert page.locator("#verdicts img").count() == 12  # an input and a reconstruction of each
    assert page.locator("#histogram circle").count() == 6
    assert page.locator("#map circle").count() > 6
    assert all(page.locator("#verdicts > li", has_text=f"out{n}.png").get_attribute("class") == "out" for n in range(3))
    assert page.locator("#samples img").count() == 16
    page.focus("#rate")
    page.keyboard.press("End")  # with the keyboard alone
    assert page.locator("#ratetext").inner_text() == "50%"
    p_values = [float(text.split()[-1]) for text in page.locator("#verdicts .facts").all_inner_texts()]
    assert page.locator("#verdicts > li.out").count() == sum(value <= 0.5 for value in p_values)
    page.keyboard.press("Home")
    assert page.locator("#verdicts > li.out").count() == sum(value <= 0.05 for value in p_values)
    page.get_by_role("button", name="As calibrated").press("Enter")
    assert page.locator("#ratetext").inner_text() == "20%"
    page.get_by_role("button", name="Remove all").press("Enter")
    assert cards.count() == 0
    page.select_option("#model", "rows")
    page.get_by_text("takes rows of 4 numbers").wait_for()


def test_tiled_photos_have_whole_pictures_and_heat_maps_that_can_be_hidden(browser, tiled, monkeypatch):
    maps = lambda images: images[:, 0].numpy() / 255.0  # noqa: E731 - a stand-in
    monkeypatch.setattr(run_model, "load_artifact", lambda path: replace(load_artifact(path), heatmaps=maps))
    with served({"run": tiled / "run"}) as live:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{live.port}/")
        page.get_by_text("takes color images of any size, in tiles of 16").wait_for()
        page.set_input_files("#files", [tiled / "in" / "01.jpg", tiled / "in" / "00.png"])
        page.get_by_text("2 scored.").wait_for()
        assert not page.locator("#resizeline").is_visible()
        assert not page.locator("#mapsection").is_visible()
        heat = page.locator("#verdicts .heat").last
        assert heat.evaluate("each => [each.naturalWidth, each.naturalHeight]") == [20, 40]
        page.focus("#heat")
        page.keyboard.press("Space")
        assert not heat.is_visible()
        axe = NODE / "axe-core" / "axe.min.js"
        if axe.exists():
            page.evaluate(axe.read_text(encoding="utf-8"))
            found = page.evaluate("axe.run().then(({violations}) => violations.map(each => each.id))")
            assert found == []
        page.close()


def test_it_fits_a_narrow_window(page):
    page.set_viewport_size({"width": 340, "height": 700})
    uploaded(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 340


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, scheme):
    axe = NODE / "axe-core" / "axe.min.js"
    if not axe.exists():
        pytest.skip("axe-core is not installed")
    page.emulate_media(color_scheme=scheme)
    uploaded(page)
    page.evaluate(
        axe.read_text(encoding="utf-8")
    )  # through the debugger, since the page's policy allows no other script
    found = page.evaluate("axe.run().then(({violations, passes}) => [violations, passes.length])")
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found[0]] == []
    assert found[1] > 20


def test_the_exported_file_gives_the_same_scores_in_the_browser(browser, models):
    distribution = NODE / "onnxruntime-web" / "dist"
    if not distribution.exists():
        pytest.skip("onnxruntime-web is not installed")
    example = (Path(__file__).parents[2] / "examples" / "score_in_browser.js").read_text(encoding="utf-8")
    images = np.concatenate([blobs(2, SHAPE, 9).numpy(), 255 - blobs(2, SHAPE, 8).numpy()])
    page = browser.new_page()
    page.route(
        "https://runtime.test/**",
        lambda route: (
            route.fulfill(path=distribution / route.request.url.rpartition("/")[2])
            if route.request.url != "https://runtime.test/"
            else route.fulfill(body="<!doctype html>", content_type="text/html")
        ),
    )
    page.goto("https://runtime.test/")
    page.add_script_tag(url="https://runtime.test/ort.wasm.min.js")
    page.add_script_tag(content=example)
    model = base64.b64encode(models["gray-onnx"].read_bytes()).decode()
    found = page.evaluate("([model, pixels]) => score(model, pixels, [4, 1, 28, 28])", [model, images.ravel().tolist()])
    page.close()
    score, p_value, called = run_onnx(models["gray-onnx"], images)
    np.testing.assert_allclose(found["score"], score, rtol=1e-3)
    assert found["is_outlier"] == [bool(each) for each in called]
    np.testing.assert_allclose(found["p_value"], p_value, atol=0.06)
