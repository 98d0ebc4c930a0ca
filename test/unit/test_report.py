"""The report: its files, its curves, and the page as it behaves in a browser."""

import base64
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from chromium import headless
from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from imaging.pictures import BOX_COLOUR, most_changed, save_strip, with_luminance
from inference.samples import Sample
from report.curves import Panel, draw, draw_log
from report.page import Report
from runtime.errors import RunError, UserError
from runtime.files import write_text

RNG = np.random.default_rng(11)
NAMES = ["plain", "<b>it's</b> & 100%#?"]
GREY = {"Bicubic": 40, "SRCNN": 130, "Original": 220}
CHANGED = (30, 60)  # top, left of the region that the network changed most


def figures(name: str) -> dict:
    """Return figures as evaluate.py gives them."""
    psnr = {"bicubic_psnr": 30.25, "srcnn_psnr": 32.5}
    return {"name": name, **psnr, "bicubic_ssim": 0.8, "srcnn_ssim": 0.9}


def pictures() -> list[np.ndarray]:
    """Return bicubic, output and original: flat, so that a pixel tells which one it is of."""
    result = [np.full((80, 120, 3), grey, np.uint8) for grey in GREY.values()]
    top, left = CHANGED
    result[1][top : top + 16, left : left + 16, 1] = 255
    return result


LOG = "epoch,step,lr,loss,psnr,held_out_psnr\n0,10,1e-4,0.01,30.5,\n1,20,1e-4,0.005,31.0,29.5\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two images with a training log."""
    base = tmp_path_factory.mktemp("report")
    (base / "metrics.csv").write_text(LOG, encoding="utf-8")
    report = Report(base / "new" / "report", base / "metrics.csv")
    for name in NAMES:
        report.add(figures(name), *pictures())
    result = {"protocol": "paper", "scale": 3, "weights": "<i>.pth", "mean": figures("")}
    assert report.write(result, ", self-ensemble") == base / "new" / "report" / "index.html"
    return base / "new" / "report"


def test_the_page_stands_alone(folder: Path) -> None:
    page = (folder / "index.html").read_text("utf-8")
    assert not re.search(
        r"<link(?! rel=\"icon\" href=\"data:)|<script\s+src|@import|url\((?!#)", page
    )
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 * len(NAMES) * len(GREY)
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    links = [link for link in re.findall(r'href="([^"]*)"', page) if link[0] != "#"]
    links = [link for link in links if not link.startswith("data:")]
    assert {unquote(link) for link in links} == {p.name for p in folder.glob("*.png")}
    assert sorted(p.suffix for p in folder.iterdir()) == [".html", ".png", ".png"]


def test_the_page_shows_three_pictures_and_frames_the_region(folder: Path) -> None:
    page = (folder / "index.html").read_text("utf-8")
    assert re.findall(r'data-kind="([^"]*)"', page) == list(GREY) * len(NAMES)
    framed = "left: 50.000%; top: 37.500%; width: 13.333%; height: 20.000%"
    assert set(re.findall(r'class="region" style="([^"]*)"', page)) == {framed}


def test_pictures_and_their_most_changed_region_are_shown_as_they_are(tmp_path: Path) -> None:
    report = Report(tmp_path)
    images = [RNG.integers(0, 256, (80, 120, 3), np.uint8) for _ in GREY]
    report.add(figures("noise"), *images)
    page = report.write({"protocol": "paper", "scale": 3, "weights": "w.pth", "mean": figures("")})
    sources = re.findall('src="data:image/webp;base64,(.*?)"', page.read_text("utf-8"))
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]
    top, left, side = most_changed(*images[:2])
    regions = [image[top : top + side, left : left + side] for image in images]
    for seen, expected in zip(shown, images + regions, strict=True):
        np.testing.assert_array_equal(seen, expected)


def test_a_name_that_is_no_utf_8_is_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "page", "Größe, 咖啡, J\udcf6rg")
    assert (tmp_path / "page").read_bytes() == "Größe, 咖啡, J\\udcf6rg".encode()


def test_names_are_text_and_not_markup(folder: Path) -> None:
    page = (folder / "index.html").read_text("utf-8")
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;it" in page


def test_the_protocol_of_the_curves_is_told(folder: Path, tmp_path: Path) -> None:
    """It may be another than that of the figures above them."""
    told = "Training measures by protocol <strong>modelzoo</strong>"
    assert told in (folder / "index.html").read_text("utf-8")
    result = {"protocol": "paper", "scale": 3, "weights": "w.pth", "mean": figures("")}
    assert told not in Report(tmp_path).write(result).read_text("utf-8"), "no curves"


def test_the_page_names_its_protocol(folder: Path) -> None:
    page = (folder / "index.html").read_text("utf-8")
    for words in ("<strong>paper</strong>", "cropped", "+2.25", "30.25", "0.8000", "self-ensemble"):
        assert words in page


def test_an_image_that_bicubic_restores_as_well_is_neither_better_nor_worse(
    tmp_path: Path,
) -> None:
    """A flat one, say: both without error."""
    flat = {**figures("flat"), "bicubic_psnr": math.inf, "srcnn_psnr": math.inf}
    report = Report(tmp_path)
    report.add(flat, *pictures())
    mean = figures("")
    page = report.write({"protocol": "paper", "scale": 3, "weights": "w.pth", "mean": mean}, "")
    text = page.read_text("utf-8")
    assert "+nan" not in text
    assert 'class="worse"' not in text
    assert "+0.00" in text


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = Report(tmp_path / "file" / "report")
    with pytest.raises(RunError, match="cannot write"):
        report.write({"protocol": "paper", "scale": 3, "weights": "w.pth", "mean": figures("")})


def test_curves_show_each_psnr_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text(LOG, encoding="utf-8")
    curves = draw_log(log)
    assert list(curves) == ["Loss", "PSNR in dB"]
    assert ">held_out_psnr</text>" in curves["PSNR in dB"], "text, for the page to style"
    assert "psnr" not in curves["Loss"]
    assert all(svg.startswith("<svg") and svg.endswith("</svg>\n") for svg in curves.values())
    assert draw_log(log) == curves, "the same log gives another page"
    panels: list[Panel] = []
    monkeypatch.setattr("report.curves.draw", lambda panel: panels.append(panel) or draw(panel))
    draw_log(log)
    assert [(panel.title, panel.log) for panel in panels] == [("", True), ("", False)]
    log.write_text(LOG.replace("29.5", ""), encoding="utf-8")
    assert "held_out_psnr" not in draw_log(log)["PSNR in dB"], "a name without a curve"
    log.write_text("epoch,loss,psnr\n0,0.01,\n", encoding="utf-8")
    assert list(draw_log(log)) == ["Loss"]
    log.write_text(LOG, encoding="utf-8-sig")  # as spreadsheets save it
    assert draw_log(log) == curves
    log.write_text("epoch,psnr $x^{$,psnr $y$\n0,29,30\n", encoding="utf-8")
    assert "psnr $x^{$" in draw_log(log)["PSNR in dB"], "a name is no formula"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns (none)"),
        ("a,b\n", "columns a, b"),
        ("epoch,loss\n", "no epoch in it yet"),
        ("a,b\n1,2\n", "columns a, b"),
        ("epoch,lr\n1,2\n", "columns epoch, lr"),
        ("epoch,loss\n1,many\n", "'many'"),
    ],
)
def test_a_training_log_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(words)):
        draw_log(log)
    with pytest.raises(
        UserError, match=r"nowhere\.csv cannot be read .*\(No such file or dir\w+\)$"
    ):
        draw_log(tmp_path / "nowhere.csv")


def test_the_axis_of_a_single_epoch_has_whole_numbers() -> None:
    (axes,) = draw(Panel("", {"one": ([0], [2.0])})).axes
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_the_axis_of_minutes_has_parts_of_them() -> None:
    (axes,) = draw(Panel("", {"one": ([0.2, 1.6], [2.0, 3.0])}, xlabel="minutes")).axes
    assert any(tick != round(tick) for tick in axes.get_xticks())


def test_a_curve_of_one_point_is_seen() -> None:
    (axes,) = draw(Panel("", {"one": ([1], [2.0]), "two": ([1, 2], [2.0, 3.0])})).axes
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]
    drawn = {name for name, spine in axes.spines.items() if spine.get_visible()}
    assert drawn == {"left", "bottom"}


def test_what_a_picture_of_curves_says() -> None:
    panel = Panel("title", {"curve": ([2, 4], [1.0, 10.0])}, {"level": 5.0}, "x", "y", log=True)
    (axes,) = draw(panel).axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("title", "x", "y")
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["curve", "level"]
    assert axes.lines[0].get_xydata().tolist() == [[2, 1], [4, 10]]
    (axes,) = draw(panel._replace(levels={}, log=False)).axes
    assert (axes.get_legend(), axes.get_yscale()) == (None, "linear")


def test_the_most_changed_region_is_found() -> None:
    before, after, _ = pictures()
    assert most_changed(before, np.where(after == 255, 255, before)) == (*CHANGED, 16)
    top, left, side = most_changed(np.zeros((9, 5)), np.ones((9, 5)))
    assert (top + side <= 9, left + side <= 5, side) == (True, True, 5)


@pytest.mark.parametrize("shape", [(80, 120, 3), (33, 40), (300, 500)])
def test_a_strip_holds_three_panels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = [np.full(shape, grey, float) for grey in GREY.values()]
    save_strip(tmp_path / "strip.png", "name", *images, psnrs=(30.25, 32.5))
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    row = strip[60, :, 1]  # through the three pictures, above or beside the frame
    for i, grey in enumerate(GREY.values()):
        third = row[len(row) * i // 3 : len(row) * (i + 1) // 3]
        assert np.mean(third == grey) > 0.7


def test_a_strip_frames_the_most_changed_region_and_enlarges_it(tmp_path: Path) -> None:
    """Of pictures of 80×120 pixels, three times as large for the caption above them."""
    _, output, _ = pictures()
    save_strip(tmp_path / "strip.png", "name", *pictures(), psnrs=(30.25, 32.5))
    panel = np.asarray(Image.open(tmp_path / "strip.png"))[12:-12, 12 + 360 + 12 :][:, :360]
    caption, picture, zoom = panel[:28], panel[28:][:240], panel[28 + 240 + 12 :]
    assert np.ptp(np.argwhere(caption.max(axis=2) < 128)[:, 0]) > 10, "too small to be read"
    assert zoom.shape == (360, 360, 3)
    top, left = CHANGED
    assert (zoom == output[top, left]).all()
    frame = np.zeros((240, 360), bool)
    frame[3 * top : 3 * top + 48, 3 * left : 3 * left + 48] = True
    frame[3 * top + 2 : 3 * top + 46, 3 * left + 2 : 3 * left + 46] = False
    assert (picture[frame] == BOX_COLOUR).all()
    assert (picture[~frame] == output.repeat(3, 0).repeat(3, 1)[~frame]).all()


@pytest.mark.parametrize(
    ("level", "brighter", "expected"), [(0, 200.0, 233), (250, 20.0, 255), (5, -20.0, 0)]
)
def test_luminance_is_exchanged_within_the_range(
    level: int, brighter: float, expected: int
) -> None:
    rgb, before = np.full((2, 3, 3), level, np.uint8), np.full((2, 3), 16.0)
    sample = Sample("", before, 0 * before, rgb, 255 - rgb)
    assert (sample.visible(before + brighter) == expected).all()
    assert (with_luminance(rgb, before, before + brighter) == expected).all()


def test_exchanging_the_luminance_keeps_the_colour() -> None:
    rgb = RNG.integers(60, 190, (8, 9, 3), dtype=np.uint8)
    to_y = np.array([65.481, 128.553, 24.966]) / 255
    before = 16 + rgb @ to_y
    after = before + RNG.uniform(-20, 20, before.shape)
    result = with_luminance(rgb, before, after).astype(float)
    np.testing.assert_allclose(16 + result @ to_y, after, atol=0.5)
    np.testing.assert_allclose(result - result[..., :1], rgb - rgb[..., :1].astype(float), atol=1)


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Chrome]:
    """Headless Chromium without network, on the report's page."""
    with headless("1200,1000") as chrome:
        chrome.set_network_conditions(offline=True, latency=0, throughput=0)
        yield chrome


@pytest.fixture
def compare(browser: Chrome, folder: Path):
    """The first slider, as the page opens."""
    browser.get((folder / "index.html").as_uri())
    return browser.find_element(By.CLASS_NAME, "compare")


def shown(compare) -> np.ndarray:
    """Return the pixels of the slider, away from line, frame and labels, as grey values."""
    with Image.open(io.BytesIO(compare.screenshot_as_png)) as image:
        return np.asarray(image.convert("L"))[20]


def line(compare) -> float:
    """Return where the line stands, as a share of the width."""
    mark = compare.find_element(By.CLASS_NAME, "compare-line").rect
    return (mark["x"] + mark["width"] / 2 - compare.rect["x"]) / compare.rect["width"]


def assert_split(compare, share: float, left: str, right: str) -> None:
    """Check what is seen to the left and to the right of the line."""
    assert line(compare) == pytest.approx(share, abs=0.01)
    row = shown(compare)
    middle, margin = round(share * len(row)), 15
    assert np.median(row[margin : middle - margin]) == pytest.approx(GREY[left], abs=2)
    assert np.median(row[middle + margin : -margin]) == pytest.approx(GREY[right], abs=2)


def test_dragging_moves_the_line(browser: Chrome, compare) -> None:
    assert_split(compare, 0.5, "Bicubic", "SRCNN")
    quarter = round(compare.rect["width"] / 4)
    hold = ActionChains(browser).move_to_element(compare).click_and_hold()
    hold.move_by_offset(quarter, 0).move_by_offset(-2 * quarter, 20).release().perform()
    assert_split(compare, 0.25, "Bicubic", "SRCNN")
    ActionChains(browser).move_to_element(compare).perform()
    assert line(compare) == pytest.approx(0.25, abs=0.01), "follows a mouse that holds nothing"
    far = ActionChains(browser).move_to_element(compare).click_and_hold()
    far.move_by_offset(3 * quarter // 2, 0).perform()
    assert line(compare) == pytest.approx(0.875, abs=0.01), "waits for the release"
    far.reset_actions()
    other = browser.find_elements(By.CLASS_NAME, "compare")[1]
    assert line(other) == pytest.approx(0.5, abs=0.01)


def test_the_keyboard_moves_the_line(compare) -> None:
    slider = compare.find_element(By.CSS_SELECTOR, "input[type=range]")
    assert "plain" in slider.accessible_name
    slider.send_keys(Keys.ARROW_RIGHT * 10)
    assert_split(compare, 0.6, "Bicubic", "SRCNN")
    slider.send_keys(Keys.HOME)
    assert line(compare) == pytest.approx(0.0, abs=0.01)


def test_any_two_images_are_compared(browser: Chrome, compare) -> None:
    def choose(side: str, kind: str) -> None:
        radio = f"input[name='{side}-1'][value='{kind}']"
        browser.find_element(By.CSS_SELECTOR, radio).click()

    labels = compare.find_elements(By.CLASS_NAME, "compare-label")
    assert [label.text for label in labels] == ["Bicubic 30.25 dB", "SRCNN 32.50 dB"]
    choose("Left", "Original")
    assert_split(compare, 0.5, "Original", "SRCNN")
    choose("Right", "Bicubic")
    assert_split(compare, 0.5, "Original", "Bicubic")
    choose("Left", "Bicubic")
    assert_split(compare, 0.5, "Bicubic", "Bicubic")
    assert [label.text for label in labels] == ["Bicubic 30.25 dB", "Bicubic 30.25 dB"]


def test_frame_and_zoom_show_the_most_changed_region(browser: Chrome, compare, folder) -> None:
    frame, box = compare.find_element(By.CLASS_NAME, "region").rect, compare.rect
    top, left = CHANGED
    assert (frame["x"] - box["x"]) / box["width"] == pytest.approx(left / 120, abs=0.01)
    assert (frame["y"] - box["y"]) / box["height"] == pytest.approx(top / 80, abs=0.01)
    assert frame["width"] / box["width"] == pytest.approx(16 / 120, abs=0.01)
    zooms = browser.find_elements(By.CSS_SELECTOR, "#image-1 .zooms img")
    assert [zoom.get_property("naturalWidth") for zoom in zooms] == [16] * 3


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_its_window(browser: Chrome, folder: Path, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((folder / "index.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    broken = "return [...document.images].filter(i => !i.hidden && !i.naturalWidth).length"
    assert browser.execute_script(broken) == 0
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_each_figure_stands_in_its_place(tmp_path: Path) -> None:
    def told(html: str) -> str:
        return " ".join(re.sub("<[^>]*>", " ", html).split())

    report = Report(tmp_path)
    worse = {**figures("worse"), "srcnn_psnr": 30.0, "srcnn_ssim": 0.7}
    for image in (figures("one"), worse):
        report.add(image, *pictures())
    mean = {**figures(""), "bicubic_psnr": 30.25, "srcnn_psnr": 31.25, "srcnn_ssim": 0.85}
    page = report.write({"protocol": "paper", "scale": 3, "weights": "w.pth", "mean": mean})
    text = page.read_text("utf-8")
    title, means = (
        re.search(f"<{tag}>(.*?)</{tag.split()[0]}>", text, re.DOTALL)[1]
        for tag in ("title", 'dl class="means"')
    )
    assert title == "SRCNN ×3: 31.25 dB, protocol paper"
    assert told(means) == (
        "Bicubic 30.25 dB SSIM 0.8000 SRCNN 31.25 dB SSIM 0.8500 Gain +1.00 dB SSIM +0.0500"
    )
    rows = [told(row) for row in re.findall("<tr>(.*?)</tr>", text, re.DOTALL)]
    assert rows == [
        "PSNR in dB SSIM",
        "Image Bicubic SRCNN Gain Bicubic SRCNN",
        "one 30.25 32.50 +2.25 0.8000 0.9000",
        "worse 30.25 30.00 -0.25 0.8000 0.7000",
        "Mean 30.25 31.25 +1.00 0.8000 0.8500",
    ]
    assert re.findall('<td class="(.*?)">', text) == ["better", "worse", "better"]
    links = re.findall('<a href="#(.*?)"', text)
    assert links == re.findall('<section class="card image" id="(.*?)"', text)
    assert text.count("<p>120×80 · ") == 2


def test_name_and_figures_of_a_strip_are_those_that_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def save_strip(_: object, name: str, *__: object, psnrs: tuple[float, float]) -> None:
        written.append((name, *psnrs))

    monkeypatch.setattr("report.page.save_strip", save_strip)
    Report(tmp_path).add(figures("one"), *pictures())
    assert written == [("one", 30.25, 32.5)]


def test_a_report_is_written_at_once(tmp_path: Path) -> None:
    """An image that cannot be measured, or Ctrl-C, leaves the earlier one whole."""
    report = Report(tmp_path / "report")
    report.add(figures("one"), *pictures())
    assert list(tmp_path.iterdir()) == []


def test_an_image_may_have_the_longest_name_that_there_is(tmp_path: Path) -> None:
    report = Report(tmp_path)
    for name in ("é" * 125, "é" * 125):
        report.add(figures(name), *pictures())
    report.write({"protocol": "paper", "scale": 3, "weights": "w.pth", "mean": figures("")})
    assert len({path.name for path in tmp_path.glob("*.png")}) == 2
