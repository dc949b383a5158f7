"""The web page in a real browser (Debian's chromium), over the real application and a small model in this process."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from s2s_ray import registry, storage
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.geo.images import encode
from s2s_ray.index.build import build_index
from s2s_ray.service.http.page import VENDOR
from s2s_ray.service.settings import ServeArgs
from tests.support.in_process_service import application, listening
from tests.support.pair_folder import PairFolder
from tests.support.served import save_tiny

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

CHROMIUM = shutil.which("chromium")
TILES = 7
SECRET = "let-me-in"
expect.set_options(timeout=30_000)  # milliseconds; other tests may use both cores
DESKTOP, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> ServeArgs:
    """Store an index with pictures of a few places around one point, and a model with random weights."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    pairs = PairFolder(folder / "pairs")
    for number in range(TILES):
        place = {"latitude": 48.1 + 0.001 * number, "longitude": 11.5 + 0.001 * (number % 3)}
        pairs.add(f"place-{number}", "test", tile=64, **place)
    for number in range(2):  # a data set needs these too
        pairs.add(f"train-{number}", "train")
        pairs.add(f"val-{number}", "val")
    config = pairs.config(folder / "data", keep_tiles=True)
    prepare(config)
    model = save_tiny(folder / "local", config.model.height, config.model.width)
    storage.publish(folder / "local", str(folder / "checkpoint"))
    fingerprint = registry.fingerprint(str(folder / "checkpoint"))
    index = build_index(model, PairDataset(config.data.uri, "test"), checkpoint_fingerprint=fingerprint, split="test")
    index.save(str(folder / "index"))
    return ServeArgs(checkpoint=str(folder / "checkpoint"), index=str(folder / "index"))


@pytest.fixture(scope="module")
def url(arguments: ServeArgs) -> Iterator[str]:
    with listening(application(arguments)) as address:
        yield address


@pytest.fixture(scope="module")
def browser(arguments: ServeArgs) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """Open the page at desktop size; it must use no other host and log no error."""
    opened = browser.new_page(viewport=DESKTOP)
    faults: list[str] = []
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda sent: faults.append(sent.url) if not local(sent.url, url) else None)
    opened.goto(url)
    expect(opened.locator("#served")).to_contain_text(f"{TILES} tiles")
    yield opened
    opened.close()
    expected = "Failed to load resource: the server responded with a status of "
    assert [fault for fault in faults if not fault.startswith(expected)] == []


def local(requested: str, url: str) -> bool:
    return requested.startswith((url, "data:", "blob:"))


def keep(page: Page, name: str) -> None:
    """Save a screenshot if S2S_SCREENSHOTS names a folder."""
    if folder := os.environ.get("S2S_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def panorama(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 120, 3), dtype=np.uint8)
    return encode(pixels, "png")


def photograph() -> Any:
    return np.random.default_rng(5).integers(0, 256, (60, 80, 3), dtype=np.uint8)


CALIBRATED: dict[str, Any] = {  # an answer of a calibrated release over a region
    "release": "page",
    "query": {
        "heading": 47.0, "heading_origin": "estimated", "heading_spread": 6.0, "fov": 90.0, "fov_origin": "file",
        "projection": "rectilinear", "projection_origin": "assumed", "pitch": 0.0, "roll": 0.0, "position": None,
        "warnings": ["the bearing in the file counts from magnetic north"],
    },
    "fix": {
        "position": {"latitude": 48.101, "longitude": 11.501, "radius_m": 12.0, "radius_95_m": 40.0},
        "heading": {"degrees": 47.0, "spread": 6.0}, "confidence": 0.83, "confidence_m": 25.0, "in_region": True,
        "in_region_probability": 0.97, "calibrated": True, "distance_m": None,
        "peaks": [
            {"latitude": 48.101, "longitude": 11.501, "radius_m": 12.0, "probability": 0.8},
            {"latitude": 48.103, "longitude": 11.503, "radius_m": 15.0, "probability": 0.2},
        ],
    },
    "matches": [
        {"rank": 1, "id": "place-1", "latitude": 48.101, "longitude": 11.501, "descriptor_distance": 0.4,
         "heading": 47.0, "distance_m": None},
    ],
    "surface": {"spacing_m": 8.0, "points": [
        {"latitude": 48.101 + 7e-5 * y, "longitude": 11.501 + 1e-4 * x, "probability": 1 / (1 + x * x + y * y)}
        for y in range(-4, 5) for x in range(-4, 5)
    ]},
}  # fmt: skip


def requested_heading(url: str) -> str | None:
    """Return the heading of a request to localise; None for any other request."""
    parts = urlsplit(url)
    return parse_qs(parts.query)["heading"][0] if parts.path == "/v1/localize" else None


def upload(page: Page, field: str, content: bytes, kind: str = "image/png") -> None:
    page.locator(f"#{field}").set_input_files({"name": "mine.png", "mimeType": kind, "buffer": content})


def wait_for_pictures(page: Page, selector: str) -> None:
    """Wait until all images are loaded. The policy of the page forbids the `eval` of `wait_for_function`."""
    deadline = time.monotonic() + 30
    while not page.locator(selector).evaluate_all("pictures => pictures.every(one => one.naturalWidth > 0)"):
        assert time.monotonic() < deadline, f"the images {selector} are not loaded"
        page.wait_for_timeout(100)


def test_an_example_is_found_and_shown_on_the_map(page: Page) -> None:
    page.locator("#picture-examples button").first.click()
    expect(page.locator("#matches li")).to_have_count(TILES)
    expect(page.locator("#matches li").first).to_contain_text("from the true position")
    expect(page.locator("#map .pin")).to_have_count(TILES)
    expect(page.locator("#map .truth")).to_have_count(1)
    expect(page.locator("#localize-status")).to_contain_text(f"of {TILES} tiles")
    wait_for_pictures(page, "#matches img, .pin img")
    keep(page, "localize")


def test_a_view_is_synthesised_and_shown_with_its_polar_image(page: Page) -> None:
    page.locator("#tile-examples button").nth(1).click()
    expect(page.locator("#drawn")).to_be_visible()
    sizes = page.evaluate("['polar', 'street'].map(id => document.getElementById(id)).map(c => [c.width, c.height])")
    assert sizes == [[40, 32], [40, 32]]
    before = page.evaluate("document.getElementById('street').toDataURL()")
    page.locator("#turn").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#turn-value")).to_have_text("N 5°")
    assert page.evaluate("document.getElementById('street').toDataURL()") != before
    keep(page, "synthesize")


def test_the_heading_is_changed_by_keyboard_alone(page: Page) -> None:
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#picture-examples') !== null"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#matches li")).to_have_count(TILES)
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.id") != "heading":
        page.keyboard.press("Tab")
    # On a busy machine the pause before a request may end between two key presses.
    with page.expect_request(lambda sent: requested_heading(sent.url) == "-15"):
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
    expect(page.locator("#heading-value")).to_have_text("N 345°")
    expect(page.locator("#matches li").first).to_be_visible()
    page.locator("#matches li").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "LI"


def test_files_are_chosen_or_dropped(page: Page) -> None:
    upload(page, "picture-file", panorama())
    expect(page.locator("#matches li")).to_have_count(TILES)
    expect(page.locator("#localize-error")).to_be_empty()
    page.evaluate(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'tile.png', {type: 'image/png'}));
            const zone = document.querySelector('label[for=tile-file]');
            zone.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        list(encode(np.zeros((50, 50, 3), np.uint8), "png")),
    )
    expect(page.locator("#drawn")).to_be_visible()


@pytest.mark.parametrize(
    ("field", "content", "words"),
    [
        ("picture-file", b"not an image at all", "is not a JPEG, PNG, WebP"),
        ("picture-file", encode(np.zeros((90, 50, 3), np.uint8), "png"), "fov"),
        ("tile-file", encode(np.zeros((90, 50, 3), np.uint8), "png"), "expected a square north-up tile"),
        ("tile-file", b"", "The image is empty"),
    ],
)
def test_errors_are_shown_in_words(page: Page, field: str, content: bytes, words: str) -> None:
    upload(page, field, content)
    alert = page.locator(f"#{'localize' if field.startswith('picture') else 'synthesize'}-error")
    expect(alert).to_contain_text(words)
    assert alert.get_attribute("role") == "alert"
    keep(page, f"error-{field}")


def test_what_is_known_of_a_picture_is_chosen(page: Page) -> None:
    asked: list[dict[str, list[str]]] = []
    page.on(
        "request", lambda sent: asked.append(parse_qs(urlsplit(sent.url).query)) if "/v1/localize" in sent.url else 0
    )
    upload(page, "picture-file", encode(photograph(), "jpeg"))
    expect(page.locator("#localize-error")).to_contain_text("fov")  # a narrow picture does not say what it shows
    expect(page.locator("#fix")).to_be_hidden()
    page.locator("#fov").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#fix-position")).to_contain_text("48.10")
    assert asked[0]["heading"] == ["auto"]
    assert asked[0]["fov"] == ["auto"]
    assert asked[-1]["fov"] == ["75"]
    expect(page.locator("#file-says")).to_contain_text("75°, given by you")
    expect(page.locator("#file-says")).to_contain_text("estimated")
    page.locator("#projection").select_option("cylindrical")
    expect(page.locator("#file-says")).to_contain_text("sweep on a cylinder")
    page.locator("input[name=heading][value=unknown]").check()
    page.locator("#heading").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#file-says")).to_contain_text("N 5°, given by you")
    assert asked[-1]["heading"] == ["5"]
    keep(page, "photograph")


def test_a_fix_is_shown_as_circles_a_wedge_and_a_heat_map(page: Page) -> None:
    page.route("**/v1/localize*", lambda route: route.fulfill(status=200, json=CALIBRATED))
    upload(page, "picture-file", panorama())
    expect(page.locator("#fix-position")).to_have_text("Within 12 m of 48.101000, 11.501000.")
    details = page.locator("#fix-details")
    expect(details).to_contain_text("68% (12 m) and 95% (40 m)")
    expect(details).to_contain_text("looks NE 47°, give or take 6°")
    expect(details).to_contain_text("Confidence 83% that this is right within 25 m")
    expect(details).to_contain_text("48.10300, 11.50300 (20%)")
    expect(page.locator("#warnings")).to_contain_text("magnetic north")
    expect(page.locator("#map path.wedge")).to_have_count(1)
    expect(page.locator("#map path.peak")).to_have_count(1)
    assert page.evaluate("document.querySelectorAll('#map canvas').length") == 1, "the heat map"
    assert page.locator("#best-wedge path").get_attribute("d") not in (None, "")
    keep(page, "fix")


def test_a_position_in_the_file_is_named_as_such(page: Page) -> None:
    tagged = {
        **CALIBRATED, "query": {**CALIBRATED["query"], "position": {"latitude": 48.101, "longitude": 11.501}},
        "matches": [{**CALIBRATED["matches"][0], "distance_m": 0.3}],
    }  # fmt: skip
    page.route("**/v1/localize*", lambda route: route.fulfill(status=200, json=tagged))
    upload(page, "picture-file", panorama())
    expect(page.locator("#file-says")).to_contain_text("48.101000, 11.501000, in the file; the search does not use it")
    expect(page.locator("#matches li").first).to_contain_text("0 m from the position in the file")
    assert page.locator("#matches li.right").count() == 0
    expect(page.locator("#map .truth")).to_have_attribute("title", "Position in the file")


def test_a_picture_from_elsewhere_is_named_in_words(page: Page) -> None:
    outside = {**CALIBRATED["fix"], "in_region": False, "in_region_probability": 0.08}
    page.route("**/v1/localize*", lambda route: route.fulfill(status=200, json={**CALIBRATED, "fix": outside}))
    upload(page, "picture-file", panorama())
    expect(page.locator("#fix-position")).to_contain_text("probably not taken in this region (92%)")
    keep(page, "outside")


def test_it_fits_a_phone(browser: Browser, url: str) -> None:
    phone = browser.new_page(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    phone.goto(url)
    phone.locator("#picture-examples button").first.tap()
    expect(phone.locator("#matches li")).to_have_count(TILES)
    phone.locator("#tile-examples button").first.tap()
    expect(phone.locator("#drawn")).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    smallest = phone.evaluate("Math.min(...[...document.querySelectorAll('button, input[type=range]')]"
                              ".filter(e => e.offsetParent).map(e => e.getBoundingClientRect().height))")  # fmt: skip
    assert smallest >= 32, "touch targets need a minimum size"
    keep(phone, "phone")
    phone.close()


def test_without_the_map_library_it_works_and_explains(browser: Browser, url: str) -> None:
    bare = browser.new_page(viewport=DESKTOP)
    bare.route("**/vendor/leaflet*", lambda route: route.abort())
    bare.goto(url)
    bare.locator("#picture-examples button").first.click()
    expect(bare.locator("#matches li")).to_have_count(TILES)
    expect(bare.locator("#no-map")).to_contain_text("There is no map")
    expect(bare.locator("#map")).to_be_hidden()
    bare.close()


def test_an_overloaded_service_is_explained(page: Page) -> None:
    page.route("**/v1/localize*", lambda route: route.fulfill(status=503, headers={"Retry-After": "2"}, body="Busy"))
    upload(page, "picture-file", panorama())
    expect(page.locator("#localize-error")).to_contain_text("responded with 503: Busy. Try again in 2 s.")


def test_a_token_is_requested(browser: Browser, arguments: ServeArgs) -> None:
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    closed = arguments.model_copy(update={"tokens": ServeArgs(
        checkpoint="c", index="i", tokens=[{"name": "visitor", "sha256": digest}]  # type: ignore[list-item]
    ).tokens})  # fmt: skip
    with listening(application(closed)) as address:
        page = browser.new_page(viewport=DESKTOP)
        page.goto(address)
        expect(page.locator("#served")).to_contain_text("A token is required")
        page.locator("#access summary").click()
        page.locator("#token").fill(SECRET)
        page.locator("#use-token").click()
        page.locator("#picture-examples button").first.click()
        expect(page.locator("#matches li")).to_have_count(TILES)
        wait_for_pictures(page, "#matches img")
        page.close()


def test_the_documentation_works_offline(browser: Browser, url: str) -> None:
    if not VENDOR.is_dir():
        pytest.skip("s2s_ray/service/static/vendor is empty: `make setup` installs it if npm is available")
    page = browser.new_page(viewport=DESKTOP)
    others: list[Any] = []
    page.on("request", lambda sent: others.append(sent.url) if not local(sent.url, url) else None)
    page.goto(f"{url}/docs")
    expect(page.locator(".swagger-ui .opblock-post").first).to_be_visible()
    assert page.locator(".swagger-ui .opblock-post").count() == 6
    assert others == []
    keep(page, "docs")
    page.close()
