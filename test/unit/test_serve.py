"""The local page: what the server takes and refuses, and the page in a browser."""

import base64
import io
import logging
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chromium import headless
from commands import HANG, ROOT
from PIL import Image
from runs import start
from samples import coffee, encoded, opened, pixels, png
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.exceptions import ClientDisconnected
from werkzeug.serving import BaseWSGIServer, make_server

from imaging.kinds import FORMATS
from imaging.photo import Photo
from imaging.resize import BICUBIC
from inference.upscaler import Advance, Upscaler
from runtime.errors import RunError, run_main
from serve import app as server


@pytest.fixture(scope="module")
def upscalers(weights: Path) -> dict[int, Upscaler]:
    return {scale: Upscaler(weights, scale, torch.device("cpu"), "fp32") for scale in (2, 3)}


@pytest.fixture
def client(upscalers: dict[int, Upscaler]):
    return server.create_app(upscalers).test_client()


def post(client, data: bytes, name: str = "a.png", where: str = "3/srcnn", **headers: str):
    return client.post(f"/enlarge/{where}", data=data, query_string={"name": name}, headers=headers)


def test_the_page_stands_alone(client) -> None:
    response = client.get("/")
    assert response.status_code == 200
    outside = r"https?://|<link(?! rel=\"icon\" href=\"data:)|<script\s+src|@import"
    assert not re.search(outside, response.text)
    assert [int(s) for s in re.findall(r'name="scale" value="(\d)"', response.text)] == [2, 3]
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("scale", [2, 3])
def test_both_enlargements(client, upscalers: dict[int, Upscaler], scale: int) -> None:
    image = coffee(40, 30)
    bicubic = post(client, png(image), where=f"{scale}/bicubic")
    srcnn = post(client, png(image), where=f"{scale}/srcnn")
    assert (bicubic.status_code, srcnn.mimetype) == (200, "image/png")
    expected = image.resize((40 * scale, 30 * scale), BICUBIC)
    assert (opened(bicubic.data) == pixels(expected)).all()
    expected = upscalers[scale].enlarge(Photo(image, "PNG", {}))
    assert np.abs(opened(srcnn.data) - pixels(expected)).max() <= 1
    assert np.abs(opened(srcnn.data) - opened(bicubic.data)).max() > 2


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "two\n.jpg",
            b"hello",
            "two\\n.jpg was not taken: not a picture of one of these kinds: PNG",
        ),
        ("a.png", b"", "a.png was not taken: it is empty (0 bytes); look at where it came from"),
        ("", b"hello", "The picture was not taken: not a picture of one of these kinds: PNG, JPEG"),
        (
            "a.tif",
            b"II*\0",
            "a.tif was not taken: browsers do not show TIFF; python upscale.py enlarges it.",
        ),
        (
            "a.heic",
            b"\0\0\0\x18ftypheic",
            "a.heic was not taken: browsers do not show HEIF; python",
        ),
        ("a.png", png(coffee(60, 40))[:-400], "cannot be read"),
        (
            "a.png",
            png(Image.new("1", (2400, 2400))),
            "5.8 megapixels; at most 5.6 here; python upscale.py takes larger ones.",
        ),
    ],
)
def test_wrong_files(client, name: str, data: bytes, words: str) -> None:
    response = post(client, data, name)
    assert (response.status_code, response.mimetype) == (422, "text/plain")
    assert words in response.text
    assert ".tif," not in response.text


def test_the_kinds_that_the_page_names_are_those_that_it_takes(client) -> None:
    named = server.KINDS.replace(" or ", ", ").split(", ")
    Image.init()
    for kind in [kind for kind in named if kind.upper() in Image.SAVE]:  # AVIF not in each Pillow
        name = f"a.{kind.lower()}"
        answer = post(client, encoded(coffee(9, 9), kind.upper()), name)
        expected = "image/png" if kind == "GIF" else f"image/{kind.lower()}"
        assert (answer.status_code, answer.mimetype) == (200, expected)
    page = " ".join(client.get("/").text.split())
    assert f"{server.KINDS}, up to 32 MB each, 50 megapixels when enlarged" in page
    accepted = re.search(r'accept="(.*?)"', client.get("/").text).group(1).split(",")
    assert {FORMATS[suffix] for suffix in accepted} == {kind.upper() for kind in named}


def test_wrong_requests(client) -> None:
    data = png(coffee(9, 9))
    assert post(client, data, where="4/srcnn").status_code == 404
    assert post(client, data, where="3/nearest").status_code == 404
    assert client.get("/enlarge/3/srcnn").status_code == 405
    large = post(client, bytes(server.MOST_BYTES + 1))
    assert (large.status_code, large.text) == (
        413,
        "a.png is larger than 32 MB; python upscale.py takes it.",
    )


def test_other_hosts_and_other_pages_are_refused(client) -> None:
    data = png(coffee(9, 9))
    for host in ("evil.example", "127.0.0.1.evil.example", "192.168.0.2:8765"):
        assert client.get("/", headers={"Host": host}).status_code == 400
        assert post(client, data, Host=host).status_code == 400
    assert post(client, data, Origin="http://evil.example").status_code == 403
    assert post(client, data, Origin="null").status_code == 403
    for host in ("127.0.0.1:8765", "localhost:8765"):
        origin = f"http://{host}"
        assert post(client, data, Host=host, Origin=origin).status_code == 200


def test_nothing_is_written_to_disk(
    client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    data = png(Image.fromarray(noise))
    assert len(data) > 600_000, "as large as what a form's file is put on disk for"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    recording, opened_files = [True], []
    sys.addaudithook(
        lambda event, args: recording and event == "open" and opened_files.append(args)
    )
    assert post(client, data, where="2/bicubic").status_code == 200
    recording.clear()  # a hook cannot be taken away
    assert not [path for path, mode, _ in opened_files if mode and set(mode) & set("wax+")]
    assert list(tmp_path.iterdir()) == []


def test_a_misnamed_picture_comes_back_with_its_own_suffix(client) -> None:
    response = post(client, png(coffee(9, 9)), "a.jpg")
    assert (response.status_code, response.headers["X-Suffix"]) == (200, ".png")
    assert "PNG%20file%20by%20its%20content" in response.headers["X-Note"]


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (RuntimeError("two\nlines"), 422, "was not taken: two."),
        (KeyError(7), 422, "was not taken: 7."),
        (RecursionError(), 422, "was not taken: RecursionError."),
        (MemoryError(), 503, "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."), 503, "not enough memory"),
    ],
)
def test_whatever_a_picture_does_the_page_answers(
    fault: Exception, status: int, words: str
) -> None:
    class Broken:
        """Stands for an upscaler that fails in its own way."""

        scale = 2

        def enlarge(self, photo: Photo, advance: Advance) -> Image.Image:
            raise fault

    answer = post(
        server.create_app({2: Broken()}).test_client(), png(coffee(9, 9)), where="2/srcnn"
    )
    assert (answer.status_code, answer.mimetype) == (status, "text/plain")
    assert words in answer.text
    assert "\n" not in answer.text


class Slow:
    """An upscaler that waits until it is told to go on."""

    scale = 2

    def __init__(self) -> None:
        self.go_on, self.entered = threading.Event(), threading.Event()
        self.active = self.most_active = 0

    def stop(self) -> None:
        """Have no tile that waits."""

    def enlarge(self, photo: Photo, advance: Advance) -> Image.Image:
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        self.entered.set()
        assert self.go_on.wait(HANG)
        self.active -= 1
        return photo.image


def test_several_users_at_once_take_turns() -> None:
    slow = Slow()
    app = server.create_app({2: slow})
    images, answers = [coffee(20, 10 + i) for i in range(3)], {}

    def visit(number: int) -> None:
        answers[number] = post(app.test_client(), png(images[number]), where="2/srcnn")

    users = [threading.Thread(target=visit, args=(i,)) for i in range(3)]
    for user in users:
        user.start()
    assert slow.entered.wait(HANG)
    time.sleep(0.1)  # the others could come in now, if they did not wait
    slow.go_on.set()
    for user in users:
        user.join(HANG)
    assert slow.most_active == 1
    for number, image in enumerate(images):
        assert (opened(answers[number].data) == pixels(image)).all(), "another user's picture"


def test_too_many_users_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_WAITING", 0)
    slow, data = Slow(), png(coffee(20, 20))
    app = server.create_app({2: slow})
    first = threading.Thread(target=post, args=(app.test_client(), data, "a.png", "2/srcnn"))
    first.start()
    assert slow.entered.wait(HANG)
    refused = post(app.test_client(), data, where="2/srcnn")
    assert (refused.status_code, refused.text[:8]) == (503, "Too many")
    slow.go_on.set()
    first.join(HANG)
    assert post(app.test_client(), b"", where="2/srcnn").status_code == 422
    assert post(app.test_client(), data, where="2/srcnn").status_code == 200, "no place came free"


def test_a_refused_picture_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that still sends does not listen."""
    monkeypatch.setattr(server, "MOST_WAITING", -1)
    stream = io.BytesIO(bytes(200_001))
    client = server.create_app({2: Slow()}).test_client()
    answer = client.post("/enlarge/2/srcnn", input_stream=stream, content_length=200_001)
    assert (answer.status_code, stream.tell()) == (503, 200_001)


def test_what_the_page_is_told_of_a_result(client, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 102.5])
    monkeypatch.setattr(server, "time", SimpleNamespace(perf_counter=times.__next__))
    answer = client.post("/enlarge/2/bicubic", data=png(coffee(9, 9)))
    facts = [answer.headers[name] for name in ("X-Seconds", "X-Suffix", "X-Note")]
    assert facts == ["2.50", ".png", ""]
    picture = encoded(coffee(9, 9), "BMP")
    monkeypatch.undo()
    answer = post(client, picture, "a.bmp", "2/bicubic")
    assert (answer.mimetype, answer.headers["X-Suffix"]) == ("image/bmp", ".bmp")


def test_it_serves_until_it_is_interrupted_and_again_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The page comes while a picture is in work; no other address answers; no line per request."""
    logging.getLogger("werkzeug").setLevel(logging.INFO)  # as it does itself
    pages: list[bytes] = []

    def visit(port: int) -> None:
        slow.go_on.clear()
        slow.entered.clear()
        url = f"http://127.0.0.1:{port}/enlarge/2/srcnn"
        sending = threading.Thread(target=urllib.request.urlopen, args=(url, png(coffee(9, 9))))
        sending.start()
        assert slow.entered.wait(HANG)
        with socket.create_connection((server.HOST, port)) as visitor:
            visitor.sendall(f"GET / HTTP/1.0\r\nHost: localhost:{port}\r\n\r\n".encode())
            pages.append(visitor.makefile("rb").read())  # until the server ends it
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", port))
        slow.go_on.set()
        sending.join()

    def made(*args: object, **options: object) -> BaseWSGIServer:
        running = make_server(*args, **options)

        def serve_forever() -> None:
            printed = sys.stdout.buffer.getvalue().decode()  # what a pipe's reader has got by now
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/ is the page", printed)[1])
            visitor = threading.Thread(target=visit, args=(port,))
            visitor.start()
            for _ in range(2):
                running.handle_request()
            visitor.join()
            running.server_close()
            ports.append(port)
            raise KeyboardInterrupt

        running.serve_forever = serve_forever
        return running

    slow, ports = Slow(), [0]
    monkeypatch.setattr(server, "make_server", made)
    for _ in range(2):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
        assert run_main(partial(server.serve, {2: slow}, ports[-1])) == 0
    monkeypatch.undo()
    assert ports[1] == ports[2] != 0
    assert [b'value="2"' in page for page in pages] == [True, True]
    assert caplog.records == []


@contextmanager
def served(upscalers: dict[int, Upscaler]) -> Iterator[int]:
    """Serve the page; the port."""
    app = server.create_app(upscalers)
    running = make_server(server.HOST, 0, app, threaded=True, request_handler=server.Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield running.port
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def sending(port: int, where: str, length: int, data: bytes) -> socket.socket:
    """Return the connection of a browser that has begun to send a picture."""
    visitor = socket.create_connection((server.HOST, port))
    head = f"POST /enlarge/{where} HTTP/1.0\r\nHost: localhost:{port}\r\n"
    visitor.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + data)
    return visitor


def test_an_upload_that_stalls_gives_its_place_back(
    upscalers: dict[int, Upscaler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_WAITING", 0)
    monkeypatch.setattr(server.Handler, "timeout", 0.1)
    with served(upscalers) as port:
        with sending(port, "3/srcnn", 100, b"half of it") as visitor:
            assert b" 400 " in visitor.makefile("rb").readline()
        url = f"http://{server.HOST}:{port}/enlarge/3/srcnn"
        with urllib.request.urlopen(url, png(coffee(9, 9))) as answer:
            assert answer.status == 200


def test_an_upload_that_stalls_does_not_hold_up_another(upscalers: dict[int, Upscaler]) -> None:
    with served(upscalers) as port, sending(port, "3/srcnn", 100, b"half of it") as stalled:
        url = f"http://{server.HOST}:{port}/enlarge/3/srcnn"
        with urllib.request.urlopen(url, png(coffee(9, 9))) as answer:
            assert answer.status == 200
        stalled.setblocking(False)
        with pytest.raises(BlockingIOError):  # it has not been given up to let the other in
            stalled.recv(1)


def test_connections_that_a_browser_keeps_at_hand_are_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """But what is no request is."""
    monkeypatch.setattr(server.Handler, "timeout", 0.1)
    with served({}) as port:
        for sent, logged in ((b"", False), (b"nonsense\r\n\r\n", True)):
            with socket.create_connection((server.HOST, port)) as visitor:
                visitor.sendall(sent)
                visitor.makefile("rb").read()  # until the server ends it
            assert bool(caplog.records) == logged


def test_a_picture_whose_browser_has_gone_is_given_up() -> None:
    """Between its pieces: others wait for their turn."""
    begun, gone, ended, told = threading.Event(), threading.Event(), threading.Event(), []

    class Piecewise:
        scale = 2

        def enlarge(self, photo: Photo, advance: Advance) -> Image.Image:
            advance(1)
            begun.set()
            assert gone.wait(HANG)
            try:
                advance(1)
            except ClientDisconnected:
                told.append("given up")
            ended.set()
            return photo.image

    data = png(coffee(9, 9))
    with served({2: Piecewise()}) as port:
        with sending(port, "2/srcnn", len(data), data):
            assert begun.wait(HANG)
        gone.set()
        assert ended.wait(HANG)
    assert told == ["given up"]


def test_the_page_waits_for_stalled_uploads_no_longer_than_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {}

    def make(*_: object, **options: object) -> SimpleNamespace:
        given.update(options)
        return SimpleNamespace(serve_forever=lambda: None)

    monkeypatch.setattr(server, "make_server", make)
    server.serve({}, 0)
    assert given["request_handler"].timeout == 60


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_that_cannot_be_had(port: int) -> None:
    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        port = port or taken.getsockname()[1]
        with pytest.raises(RunError, match=f"cannot listen on port {port}: .* another --port"):
            server.serve({}, port)


def test_ctrl_c_drops_the_tiles_that_wait(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a picture in work: Python would do them all as it ends."""
    upscaler, goes_on = Upscaler(weights, 3, torch.device("cpu"), "fp32"), threading.Event()
    for _ in range(upscaler.threads):
        upscaler.pool.submit(goes_on.wait)
    waiting = upscaler.pool.submit(print)

    def interrupted() -> None:
        raise KeyboardInterrupt

    stand_in = SimpleNamespace(serve_forever=interrupted)
    monkeypatch.setattr(server, "make_server", lambda *_, **__: stand_in)
    try:
        server.serve({3: upscaler}, 0)
        assert waiting.cancelled()
    finally:
        goes_on.set()


def test_command_line(weights: Path) -> None:
    with start(ROOT / "upscale.py", "--serve", "--port=0", "--weights", weights) as process:
        try:
            url = process.stdout.readline().split()[0]
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
            with urllib.request.urlopen(url) as page:
                assert b'value="3"' in page.read()
            port = int(url.split(":")[2].strip("/"))
            with pytest.raises(RunError, match=f"cannot listen on port {port}"):
                server.serve({}, port)
            with socket.socket() as other, pytest.raises(ConnectionRefusedError):
                other.connect(("127.0.0.2", port))  # on every address, it would answer here too
            process.send_signal(signal.SIGINT)
            assert process.wait(HANG) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(upscalers: dict[int, Upscaler]) -> Iterator[str]:
    """The page, served."""
    with served(upscalers) as port:
        yield f"http://{server.HOST}:{port}/"


@pytest.fixture
def browser(url: str, tmp_path: Path) -> Iterator[Chrome]:
    """Headless Chromium on the page; what is downloaded comes to tmp_path / "downloads"."""
    downloads = {"download.default_directory": str(tmp_path / "downloads")}
    with headless("1100,1000", downloads) as chrome:
        chrome.get(url)
        yield chrome


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], arguments[1]));
document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
"""


SEVERAL = """
const files = new DataTransfer();
for (const [name, text] of arguments[0]) {
  files.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
}
document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files }));
"""


def test_several_pictures_are_pasted(browser: Chrome) -> None:
    files = {"one.png": coffee(30, 20), "two.png": coffee(20, 10)}
    encoded = [(name, base64.b64encode(png(image)).decode()) for name, image in files.items()]
    browser.execute_script(SEVERAL, encoded)
    facts, wait = browser.find_element(By.ID, "facts"), WebDriverWait(browser, HANG)
    wait.until(lambda _: "30×20 → 90×60" in facts.text)
    buttons = browser.find_elements(By.CSS_SELECTOR, "#pictures button")
    assert [button.text for button in buttons] == ["one.png", "two.png"]
    buttons[1].click()
    wait.until(lambda _: "20×10 → 60×30" in facts.text)
    assert browser.find_element(By.ID, "name").text == "two.png"
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["false", "true"]


def test_several_pictures_are_chosen(browser: Chrome, tmp_path: Path) -> None:
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        coffee(9, 9).save(path)
    browser.find_element(By.ID, "file").send_keys("\n".join(map(str, paths)))
    buttons = browser.find_elements(By.CSS_SELECTOR, "#pictures button")
    assert [button.text for button in buttons] == ["one.png", "two.png"]


def test_a_browser_does_not_open_what_is_dropped(browser: Chrome) -> None:
    """In place of the page; which shows, as long as something is held over it, that it takes it."""
    drag = (
        "const options = { cancelable: true, dataTransfer: new DataTransfer() };"
        "const goes_on = document.dispatchEvent(new DragEvent(arguments[0], options));"
        "return [goes_on, document.body.classList.contains('over')];"
    )
    for event, over in (
        ("dragover", True),
        ("dragleave", False),
        ("dragover", True),
        ("drop", False),
    ):
        assert browser.execute_script(drag, event) == [False, over]


def test_what_brings_no_picture_changes_nothing(browser: Chrome) -> None:
    """Text that is pasted, while a picture is in work."""
    browser.execute_script(
        "window.signals = []; window.fetch = (url, options) => {"
        " signals.push(options.signal); return new Promise(() => {}); };"
    )
    data = base64.b64encode(png(coffee(9, 9))).decode()
    browser.execute_script(SEVERAL, [["one.png", data], ["two.png", data]])
    browser.execute_script(SEVERAL, [])
    assert browser.execute_script("return signals.map((s) => s.aborted)") == [False]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#pictures button")) == 2


def test_the_seconds_are_those_of_the_network(browser: Chrome) -> None:
    browser.execute_script(
        "const ask = window.fetch; window.fetch = async (url, options) => {"
        " const answer = await ask(url, options), headers = new Headers(answer.headers);"
        " headers.set('X-Seconds', url.includes('srcnn') ? '2.54' : '1.26');"
        " return new Response(await answer.blob(), { headers }); };"
    )
    browser.execute_script(DROP, base64.b64encode(png(coffee(9, 9))).decode(), "a.png")
    facts, wait = browser.find_element(By.ID, "facts"), WebDriverWait(browser, HANG)
    told = "9×9 → 27×27 in 2.5 s. Left of the line: bicubic; right: SRCNN."
    wait.until(lambda _: facts.text)
    assert facts.text == told


def shown(browser: Chrome) -> list[np.ndarray]:
    """Return a row of the slider to the left and to the right of its line."""
    compare = browser.find_element(By.CLASS_NAME, "compare")
    line = browser.find_element(By.CLASS_NAME, "compare-line").rect
    with Image.open(io.BytesIO(compare.screenshot_as_png)) as image:
        row = pixels(image.convert("RGB"))[20]
    middle = round(line["x"] + line["width"] / 2 - compare.rect["x"])
    return [row[: middle - 8], row[middle + 8 :]]


def test_a_picture_in_the_browser(
    browser: Chrome, upscalers: dict[int, Upscaler], tmp_path: Path
) -> None:
    image = coffee(200, 120)
    image.save(tmp_path / "cup of coffee.png")
    wait = WebDriverWait(browser, HANG)
    status = browser.find_element(By.ID, "status")

    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "cup of coffee.png"))
    wait.until(lambda _: browser.find_element(By.ID, "result").is_displayed())
    assert browser.find_element(By.ID, "name").text == "cup of coffee.png"
    assert "200×120 → 600×360 in " in browser.find_element(By.ID, "facts").text
    assert not browser.find_element(By.ID, "pictures").is_displayed(), "a choice of one"
    bicubic = pixels(image.resize((600, 360), BICUBIC))[20]
    srcnn = pixels(upscalers[3].enlarge(Photo(image, "PNG", {})))[20]
    compare = browser.find_element(By.CLASS_NAME, "compare")
    for offset, width in ((0, 300), (-150, 150)):
        hold = ActionChains(browser).move_to_element(compare).click_and_hold()
        hold.move_by_offset(offset, 0).release().perform()
        left, right = shown(browser)
        assert len(left) == pytest.approx(width, abs=10)
        for seen, expected in ((left, bicubic[: len(left)]), (right, srcnn[-len(right) :])):
            assert np.abs(seen - expected)[20:-20].max() <= 2

    browser.find_element(By.ID, "download").click()
    saved = tmp_path / "downloads" / "cup of coffee_x3.png"
    wait.until(lambda _: saved.is_file())
    assert np.abs(opened(saved.read_bytes())[20] - srcnn).max() <= 1

    browser.execute_script(DROP, base64.b64encode(b"hello").decode(), "note.png")
    wait.until(lambda _: "not a picture" in status.text)
    assert not browser.find_element(By.ID, "result").is_displayed()
    browser.execute_script(DROP, base64.b64encode(png(coffee(30, 20))).decode(), "small.png")
    wait.until(lambda _: "30×20 → 90×60" in browser.find_element(By.ID, "facts").text)
    browser.execute_script("document.querySelector('[name=scale][value=\"2\"]').click()")
    wait.until(lambda _: "30×20 → 60×40" in browser.find_element(By.ID, "facts").text)
    assert status.text == ""
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert all("422" in message for message in messages), messages


def test_the_network_does_not_shine_through_a_transparent_picture(browser: Chrome) -> None:
    clear = base64.b64encode(png(Image.new("RGBA", (600, 360)))).decode()
    browser.execute_script(
        "const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));"
        "const ask = window.fetch; window.fetch = (url, options) =>"
        " url.includes('srcnn') ? ask(url, options) : Promise.resolve(new Response(bytes));",
        clear,
    )
    red = Image.new("RGB", (200, 120), "red")
    browser.execute_script(DROP, base64.b64encode(png(red)).decode(), "a.png")
    wait = WebDriverWait(browser, HANG)
    wait.until(lambda _: browser.find_element(By.ID, "result").is_displayed())
    left, right = (side[20:-20].astype(int) for side in shown(browser))
    assert (right[:, 0] - right[:, 1]).min() > 200
    assert (left[:, 0] - left[:, 1]).max() < 20


def test_another_picture_ends_what_is_asked_for_the_one_before(browser: Chrome) -> None:
    """Else the answer that comes last would be shown, be it of the first."""
    browser.execute_script(
        "window.signals = []; window.fetch = (url, { signal }) => {"
        " signals.push(signal); return new Promise((_, reject) =>"
        " signal.addEventListener('abort', () => reject(signal.reason))); };"
    )
    for name in ("one.png", "two.png"):
        browser.execute_script(DROP, base64.b64encode(png(coffee(9, 9))).decode(), name)
    assert browser.execute_script("return signals.map((s) => s.aborted)") == [True, False]
    assert browser.find_element(By.ID, "status").text == "Enlarging two.png …"


def test_a_result_that_comes_too_late_is_not_shown(browser: Chrome) -> None:
    """Another scale is chosen while the browser decodes the first result."""
    browser.execute_script(
        "const ask = window.fetch, decode = HTMLImageElement.prototype.decode;"
        "window.fetch = (url, options) =>"
        " url.includes('enlarge/2') ? new Promise(() => {}) : ask(url, options);"
        "HTMLImageElement.prototype.decode = async function () {"
        " await decode.call(this);"
        " document.querySelector('[name=scale][value=\"2\"]').click();"
        " window.decoded = (window.decoded || 0) + 1; };"
    )
    browser.execute_script(DROP, base64.b64encode(png(coffee(9, 9))).decode(), "a.png")
    wait = WebDriverWait(browser, HANG)
    wait.until(lambda _: browser.execute_script("return window.decoded") == 2)
    assert browser.find_element(By.ID, "status").text == "Enlarging a.png …"
    assert not browser.find_element(By.ID, "result").is_displayed()


@pytest.mark.parametrize(
    ("readable", "told"),
    [
        ("true", "The program that serves this page does not answer; is it running?"),
        ("false", "a cannot be read: it is a folder, or has changed; choose it again."),
    ],
)
def test_what_cannot_be_sent_is_told_by_its_reason(
    browser: Chrome, readable: str, told: str
) -> None:
    browser.execute_script(
        "window.fetch = () => Promise.reject(new TypeError('Failed to fetch'));"
        "File.prototype.slice = () => ({ arrayBuffer: () =>"
        f" {readable} ? Promise.resolve() : Promise.reject(new DOMException()) }});"
    )
    browser.execute_script(DROP, "", "a")
    status, wait = browser.find_element(By.ID, "status"), WebDriverWait(browser, HANG)
    wait.until(lambda _: status.get_attribute("class") == "error")
    assert status.text == told


def test_results_that_are_shown_no_more_are_let_go(browser: Chrome) -> None:
    """A browser keeps each until the page is closed, or says that it may go."""
    browser.execute_script(
        "window.kept = 0; const made = URL.createObjectURL, gone = URL.revokeObjectURL;"
        "URL.createObjectURL = (blob) => { kept += 1; return made.call(URL, blob); };"
        "URL.revokeObjectURL = (url) => { kept -= 1; gone.call(URL, url); };"
    )
    facts, wait = browser.find_element(By.ID, "facts"), WebDriverWait(browser, HANG)
    for width in (10, 11, 12):
        data = base64.b64encode(png(coffee(width, 9))).decode()
        browser.execute_script(DROP, data, "a.png")
        wait.until(lambda _, width=width: f"{width}×9 → " in facts.text)
    assert browser.execute_script("return kept") == 2


def test_a_name_of_any_characters_and_what_is_said_of_its_picture(browser: Chrome) -> None:
    data = base64.b64encode(png(coffee(9, 9))).decode()
    browser.execute_script(DROP, data, "#1 & 100%.jpg")
    status, wait = browser.find_element(By.ID, "status"), WebDriverWait(browser, HANG)
    wait.until(lambda _: browser.find_element(By.ID, "result").is_displayed())
    assert status.text == "Note: is a PNG file by its content, saved as .png."
    link = browser.find_element(By.ID, "download")
    assert link.get_attribute("download") == "#1 & 100%_x3.png"
    assert status.get_attribute("class") == ""
    browser.execute_script(DROP, base64.b64encode(b"hello").decode(), "#1 & 100%.jpg")
    wait.until(lambda _: "#1 & 100%.jpg was not taken" in status.text)
    assert status.get_attribute("class") == "error"


@pytest.mark.parametrize("ratio", [1, 2])
def test_actual_pixels_and_the_whole_picture(browser: Chrome, tmp_path: Path, ratio: int) -> None:
    metrics = {"width": 1100, "height": 1000, "deviceScaleFactor": ratio, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    coffee(500 * ratio, 40).save(tmp_path / "wide.png")
    chooser = browser.find_element(By.ID, "file")
    chooser.send_keys(str(tmp_path / "wide.png"))
    wait = WebDriverWait(browser, HANG)
    wait.until(lambda _: browser.find_element(By.ID, "result").is_displayed())
    assert chooser.get_property("value") == "", "the same file could not be chosen again"
    compare = browser.find_element(By.CLASS_NAME, "compare")
    for view, width in (("actual", 1500), ("fit", None)):
        browser.execute_script(f"document.querySelector('[value={view}]').click()")
        shown = compare.rect["width"]
        assert shown == pytest.approx(width) if width else 900 < shown < 1100
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 1100


def test_the_whole_of_a_tall_picture_is_seen_at_once(browser: Chrome, tmp_path: Path) -> None:
    coffee(40, 500).save(tmp_path / "tall.png")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "tall.png"))
    wait = WebDriverWait(browser, HANG)
    wait.until(lambda _: browser.find_element(By.ID, "result").is_displayed())
    shown = browser.find_element(By.CLASS_NAME, "compare").rect
    assert shown["height"] < browser.execute_script("return innerHeight")
    assert shown["height"] / shown["width"] == pytest.approx(12.5, rel=0.05)


def test_a_picture_that_is_too_large_is_not_sent(browser: Chrome) -> None:
    browser.execute_script(
        "window.sent = 0; window.fetch = () => { sent += 1; return new Promise(() => {}); };"
        "const files = new DataTransfer();"
        f"files.items.add(new File([new Uint8Array({server.MOST_BYTES + 1})], 'a.png'));"
        "document.dispatchEvent(new DragEvent('drop', { dataTransfer: files, cancelable: true }));"
    )
    told = "a.png is larger than 32 MB; python upscale.py takes it."
    assert browser.find_element(By.ID, "status").text == told
    assert browser.execute_script("return sent") == 0


def test_what_other_pages_may_do_with_an_answer(client) -> None:
    headers = client.get("/").headers
    policy = headers["Content-Security-Policy"].split("; ")
    assert {"frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'"} <= set(policy)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
