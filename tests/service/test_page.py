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


def test_a_key_is_asked_for_until_it_is_right(browser, models):
    with served({"gray": models["gray-onnx"]}, api_key="correct horse") as live:
        page, wrong = browser.new_page(), []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"http://127.0.0.1:{live.port}/")
        page.get_by_text("This service asks for a key.").wait_for()
        assert not page.locator("#links").is_visible()
        for key in ("correct hors", "correct \u20ac"):
            page.evaluate("document.getElementById('status').textContent = ''")
            page.fill("#key", key)
            page.press("#key", "Enter")
            page.get_by_text("This is not the key of this service.").wait_for()
            assert page.locator("#keyform").is_visible()
        page.fill("#key", "correct horse")
        page.press("#key", "Enter")
        page.get_by_text("takes gray images of 28").wait_for()
        page.locator("#keyform").wait_for(state="hidden")
        assert not page.locator("#links").is_visible()
        page.close()
        assert wrong == []


def test_the_picker_names_the_model_in_use(browser, models):
    with served({"a": models["gray-onnx"], "b": models["rows-onnx"], "c": models["gray-onnx"]}) as live:
        page, held = browser.new_page(), []
        page.goto(f"http://127.0.0.1:{live.port}/")
        page.get_by_text("Model a takes").wait_for()
        assert live.ask("POST", "/v2/repository/models/b/unload")[0] == 200
        page.select_option("#model", "b")
        page.get_by_text("model b is not loaded").wait_for()
        assert page.input_value("#model") == "a"
        assert live.ask("POST", "/v2/repository/models/b/load")[0] == 200
        page.route("**/v1/models/b", lambda route: held.append(route))
        page.select_option("#model", "b")
        page.select_option("#model", "c")
        page.get_by_text("Model c takes").wait_for()
        with page.expect_response("**/v1/models/b"):
            held[0].continue_()
        page.wait_for_timeout(200)
        assert page.input_value("#model") == "c"
        assert page.locator("#about").inner_text().startswith("Model c takes")
        page.close()


def test_the_page_calls_what_the_service_calls_and_sends_no_more_than_it_takes(page):
    answer = {"file": "a.png", "index": 0, "p_value": 0.5, "error": None, "position": [0, 0]}
    model = page.evaluate("model")
    assert model["bounds_rate"]
    assert page.locator("#bound").inner_text() == "at most"
    images = [{**answer, "score": model["threshold"], "is_outlier": each} for each in (True, False)]
    page.route("**/v1/score?*", lambda route: route.fulfill(json={"images": images}))
    page.set_input_files("#files", files()[:1])
    page.get_by_text("2 scored.").wait_for()
    assert [each.get_attribute("class") for each in page.locator("#verdicts > li").all()] == ["out", "in"]
    text = page.evaluate("String(model.threshold)")
    assert page.locator("#threshold").inner_text().startswith(f"Outliers score above {text} ")
    assert page.locator("#verdicts .facts b").first.inner_text() == text
    page.evaluate("model.bounds_rate = false; show()")
    assert page.locator("#bound").inner_text() == "about"
    page.set_input_files("#files", [{"name": "a.png", "mimeType": "image/png", "buffer": bytes(2_000_001)}])
    page.get_by_text("The files have 2,000,001 bytes; at most 2,000,000 can be sent at a time.").wait_for()


def test_a_lost_service_and_a_lost_file_are_named(browser, models, tmp_path):
    with served({"gray": models["gray-onnx"]}) as live:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{live.port}/")
        page.get_by_text("takes gray images of 28").wait_for()
        image = tmp_path / "gone.png"
        image.write_bytes(files()[0]["buffer"])
        page.evaluate("document.addEventListener('change', (event) => { lost = [...event.target.files]; }, true)")
        page.set_input_files("#files", image)
        page.get_by_text("1 scored.").wait_for()
        image.unlink()
        page.evaluate("score(lost)")
        page.get_by_text("gone.png cannot be read: it is a folder, or was moved or changed.").wait_for()
        page.route("**/v1/score?*", lambda route: route.fulfill(body='{"images": [', content_type="application/json"))
        page.set_input_files("#files", files()[:1])
        page.get_by_text("The service does not answer").wait_for()
        page.evaluate("say('')")
        page.unroute("**/v1/score?*")
    page.set_input_files("#files", files()[:1])
    page.get_by_text("The service does not answer").wait_for()
    page.close()


def test_the_slider_keeps_the_cards_and_what_is_no_longer_shown_is_counted(page):
    uploaded(page)
    page.evaluate("document.querySelectorAll('#verdicts > li').forEach((each, at) => { each.number = at; })")
    page.focus("#rate")
    page.keyboard.press("End")
    page.wait_for_function("document.getElementById('ratetext').textContent === '50%'")
    assert page.evaluate("[...document.querySelectorAll('#verdicts > li')].map((each) => each.number)") == [*range(7)]
    answer = {"file": "a.png", "index": 0, "score": 0, "p_value": 0.5, "is_outlier": False, "error": None}
    images = [answer | {"position": [0, 0]}] * 600
    page.route("**/v1/score?*", lambda route: route.fulfill(json={"images": images}))
    page.set_input_files("#files", files()[:1])
    page.get_by_text("600 scored.").wait_for()
    assert "no longer" not in page.locator("#summary").inner_text()
    page.set_input_files("#files", files()[:1])
    page.get_by_text("; 207 earlier ones are no longer shown.").wait_for()
    assert page.locator("#verdicts > li").count() == 1000
    page.get_by_role("button", name="Remove all").press("Enter")
    page.set_input_files("#files", files()[:1])
    page.get_by_text("of 600 called outliers.").wait_for()


def test_a_proxy_may_show_it_below_a_path(browser, live):
    home = f"http://127.0.0.1:{live.port}"
    page, asked = browser.new_page(), []

    def passed(route):
        asked.append(route.request.url)
        route.continue_(url=route.request.url.replace("/guard/", "/"))

    page.route("**/guard/**", passed)
    page.goto(f"{home}/guard/")
    page.get_by_text("takes gray images of 28").wait_for()
    page.set_input_files("#files", files()[:1])
    page.get_by_text("1 scored.").wait_for()
    page.locator("#samples img").first.wait_for()
    assert len(asked) >= 5  # the page, its models, one of them, its samples, the score
    links = page.locator("#links a").evaluate_all("all => all.map((each) => each.href)")
    assert links == [f"{home}/guard/openapi.json", f"{home}/guard/metrics"]
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
