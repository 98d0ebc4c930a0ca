"""Public images over HTTP, whole and right or not at all; the photographs of scikit-image."""

import hashlib
import http.server
import os
import shutil
import socket
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import requests
from commands import ROOT
from PIL import Image

import prepare
from imaging import sources
from imaging.sources import (
    ImageError,
    NoNetworkError,
    download_images,
    folder_images,
    sample_images,
)
from runtime.errors import UserError, run_main


class Server(http.server.ThreadingHTTPServer):
    """The public files from a folder; remembers what was asked for and fails where told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.cut: set[str] = set()  # names whose connection ends half-way
        self.cut_once: set[str] = set()
        self.silent: set[str] = set()  # names that are not answered as long as the test runs
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: object) -> None:
        """Say nothing of those that do not wait for their answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/some/commit"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/some/commit/")
        self.server.asked.append(name)
        path = self.server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        if name in self.server.silent:
            self.server.ended.wait()
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = name in self.server.cut | self.server.cut_once
        self.server.cut_once.discard(name)
        self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server of five small stand-ins, with a registry of their SHA-256."""
    folder = tmp_path / "served"
    digests = {}
    for index, name in enumerate(
        ["Train/t1", "Train/t10", "Train/t2", "Test/Set5/a", "Test/Set5/b"]
    ):
        path = folder / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + index, 40), (index, 2, 3)).save(path)
        digests[f"{name}.bmp"] = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(sources, "public_registry", lambda: digests)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)  # before it tries again
    with Server(folder) as server:
        monkeypatch.setenv(sources.MIRROR, server.url)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("end", ["", "/"])
def test_download_gives_every_file_in_order(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv(sources.MIRROR, server.url + end)
    folder = tmp_path / "images"
    train, evaluation = download_images(folder)
    assert train == [folder / "Train" / f"{name}.bmp" for name in ("t1", "t10", "t2")]
    assert evaluation == [folder / "Test" / "Set5" / f"{name}.bmp" for name in "ab"]
    for path in train + evaluation:
        assert path.read_bytes() == (server.folder / path.relative_to(folder)).read_bytes()
    assert files(folder) == files(server.folder)


def test_a_person_sees_how_far_it_is(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    download_images(tmp_path / "images")
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download_images(tmp_path / "images")
    shown = capsys.readouterr().err.split("\r")
    assert shown[1].startswith("images:   0%")
    assert " 0/5 " in shown[1]
    assert not shown[-2].strip(), "stays behind"


def test_a_second_download_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    first = download_images(tmp_path / "images")
    server.asked.clear()
    assert download_images(tmp_path / "images") == first
    assert server.asked == []


def test_finished_files_serve_without_a_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = download_images(tmp_path / "images")
    monkeypatch.setenv(sources.MIRROR, "http://127.0.0.1:1/nobody")
    assert download_images(tmp_path / "images") == first


def test_wrong_checksum(server: Server, tmp_path: Path) -> None:
    (server.folder / "Train" / "t10.bmp").write_bytes(b"something else")
    with pytest.raises(ImageError, match=r"t10\.bmp.*another SHA-256"):
        download_images(tmp_path / "images")
    assert "Train/t10.bmp" not in files(tmp_path / "images")
    assert files(tmp_path / "images") <= files(server.folder)  # no temporary file either


def test_a_damaged_local_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    train, _ = download_images(tmp_path / "images")
    content = train[0].read_bytes()
    train[0].write_bytes(content[:100])
    server.asked.clear()
    download_images(tmp_path / "images")
    assert train[0].read_bytes() == content
    assert server.asked == ["Train/t1.bmp"]


def test_a_cut_connection_and_the_next_try(server: Server, tmp_path: Path) -> None:
    server.cut = {"Test/Set5/b.bmp"}
    with pytest.raises(ImageError, match=r"cannot download .*Test/Set5/b\.bmp"):
        download_images(tmp_path / "images")
    assert server.asked.count("Test/Set5/b.bmp") == 2
    left = files(tmp_path / "images")
    assert "Test/Set5/b.bmp" not in left
    assert left <= files(server.folder)
    server.cut.clear()
    server.asked.clear()
    download_images(tmp_path / "images")
    assert set(server.asked) == files(server.folder) - left  # goes on, does not begin anew
    assert files(tmp_path / "images") == files(server.folder)


def test_a_passing_fault_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.cut_once = {"Train/t1.bmp"}
    download_images(tmp_path / "images")
    assert server.asked.count("Train/t1.bmp") == 2


def test_missing_file(server: Server, tmp_path: Path) -> None:
    (server.folder / "Train" / "t2.bmp").unlink()
    with pytest.raises(ImageError, match=r"download Train/t2\.bmp from .*: the server answers 404"):
        download_images(tmp_path / "images")


def test_a_password_in_the_address_is_not_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server.folder / "Train" / "t2.bmp").unlink()
    address = os.environ[sources.MIRROR].replace("://", "://user:s3cret@")
    monkeypatch.setenv(sources.MIRROR, address)
    with pytest.raises(ImageError) as error:
        download_images(tmp_path / "images")
    assert "s3cret" not in str(error.value)
    assert str(error.value).endswith("; does SRCNN_IMAGES_URL name the folder of Train/ and Test/?")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x", "http://no-such-host.invalid/x"])
def test_no_network_is_said_at_once(tmp_path: Path, monkeypatch, server: Server, address) -> None:
    monkeypatch.setenv(sources.MIRROR, address)
    with pytest.raises(
        NoNetworkError, match=r"no network: cannot reach \S+, which SRCNN_IM.*--sample"
    ):
        download_images(tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_a_silent_server_does_not_hold_for_ever(tmp_path: Path, monkeypatch, server) -> None:
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.2)
    head = requests.head

    def limited(address: str, timeout: float | None = None) -> None:
        assert timeout == sources.CONNECT_SECONDS
        head(address, timeout=timeout)

    monkeypatch.setattr(requests, "head", limited)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        monkeypatch.setenv(sources.MIRROR, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(NoNetworkError, match="no network"):
            download_images(tmp_path / "images")


def test_a_server_that_falls_silent_is_not_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "READ_SECONDS", 0.2)
    server.silent = files(server.folder)  # all: any may take as long on a busy machine
    with pytest.raises(ImageError, match=r"cannot download Test/Set5/a\.bmp .*: ReadTimeout"):
        download_images(tmp_path / "images")


def test_an_address_that_is_none(tmp_path: Path, monkeypatch, server: Server) -> None:
    monkeypatch.setenv(sources.MIRROR, "mirror")
    with pytest.raises(
        ImageError, match=r"SRCNN_IMAGES_URL is no address .*\(MissingSchema\); .*http://"
    ):
        download_images(tmp_path / "images")


def test_a_folder_or_a_file_that_cannot_be_made(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="cannot write"):
        download_images(tmp_path / "file" / "images")
    folder = tmp_path / "images" / "Train" / "t2.bmp"
    folder.mkdir(parents=True)
    with pytest.raises(ImageError, match=f"cannot write {folder}: Is a directory"):
        download_images(tmp_path / "images")


def test_prepare_downloads_into_the_dataset_folder(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare.main(["--data-path", str(tmp_path / "d"), "--download"])
    with h5py.File(tmp_path / "d" / "train" / "T91_x3_images.h5") as file:
        assert list(file.attrs["names"]) == ["t1", "t10", "t2"]
    with h5py.File(tmp_path / "d" / "val" / "Set5_x3.h5") as file:
        assert list(file.attrs["names"]) == ["a", "b"]
    server.asked.clear()
    shutil.rmtree(tmp_path / "d" / "images")  # which finished files do not need
    prepare.main(["--data-path", str(tmp_path / "d"), "--download"])
    assert server.asked == []
    said = capsys.readouterr().out
    assert f"{tmp_path}/d/images: T91 and Set5, every file with its SHA-256" in said
    assert said.count("kept as it is; --force makes it anew") == 3


def test_prepare_without_a_network_ends_with_a_status_of_its_own(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """3: quickstart.sh takes the sample photographs then. A place to write is looked for before."""
    monkeypatch.setenv(sources.MIRROR, "http://127.0.0.1:1/nobody")
    arguments = ["--data-path", str(tmp_path / "d"), "--download"]
    assert run_main(lambda: prepare.main(arguments)) == 3
    assert "no network: cannot reach 127.0.0.1" in capsys.readouterr().err
    for name in ("train/T91_x3.h5", "train/T91_x3_images.h5", "val/Set5_x3.h5"):
        folder = tmp_path / Path(name).name
        (folder / name).mkdir(parents=True)
        with pytest.raises(UserError, match=f"cannot write {folder / name}: it is a folder"):
            prepare.main([*arguments, f"--data-path={folder}", "--force"])


def test_what_a_killed_download_leaves_is_no_image(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would be measured beside Set5, which ends in an error."""
    monkeypatch.setattr("pooch.core.shutil.move", shutil.copyfile)
    monkeypatch.setattr("pooch.utils.os.remove", lambda name: None)
    sources.download_images(tmp_path / "images")
    assert len(files(tmp_path / "images")) == 10
    images = sources.folder_images(tmp_path / "images/Test/Set5")
    assert [path.name for path in images] == ["a.bmp", "b.bmp"]


def test_a_failed_download_makes_no_file(server: Server, tmp_path: Path) -> None:
    (server.folder / "Test" / "Set5" / "a.bmp").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"a\.bmp"):
        prepare.main(["--data-path", str(tmp_path / "d"), "--download"])
    assert not list((tmp_path / "d").rglob("*.h5"))


def test_what_an_interruption_left_is_not_used(server: Server, tmp_path: Path) -> None:
    stray = tmp_path / "images" / "Train" / "tmp123"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half a file")
    train, evaluation = download_images(tmp_path / "images")
    assert stray not in train + evaluation


def test_the_public_registry(t91: Path, set5: Path) -> None:
    registry = sources.public_registry()
    assert len(registry) == 96
    for name, digest in registry.items():
        local = (t91 if name.startswith("Train/") else set5) / Path(name).name
        assert hashlib.sha256(local.read_bytes()).hexdigest() == digest, name


def test_the_layout_of_a_mirror_is_described() -> None:
    text = (ROOT / "docs/data.md").read_text("utf-8")
    for parent in {str(Path(name).parent) for name in sources.public_registry()}:
        assert f"`{parent}/*.bmp`" in text


def test_sample_photographs_are_real_and_kept_apart() -> None:
    train, evaluation = sample_images()
    assert not set(train) & set(evaluation)
    colours = 0
    for path in train + evaluation:
        with Image.open(path) as image:
            assert min(image.size) >= 100
            pixels = np.asarray(image.convert("RGB"))
            assert pixels.std() > 5
            colours += image.mode == "RGB"
    assert colours >= 5


def test_sample_photographs_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert sample_images()


def test_a_scikit_image_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SAMPLE_EVAL", ("nothing.png",))
    with pytest.raises(ImageError, match=r"lacks nothing\.png"):
        sample_images()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImageError, match="scikit-image is not installed"):
        sample_images()


def test_folder_images_are_sorted_files(tmp_path: Path) -> None:
    for name in ("b.png", "a10.png", "a2.png", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in folder_images(tmp_path)] == ["a10.png", "a2.png", "b.png"]


def test_an_images_name_is_text_whatever_bytes_are_in_it() -> None:
    assert sources.image_name(Path("a", os.fsdecode(b"J\xf6rg.x.png"))) == "J\ufffdrg.x"


def test_a_phones_photo_with_a_preview_behind_it_is_read(tmp_path: Path) -> None:
    preview = Image.new("RGB", (4, 3))
    photo = Image.new("RGB", (40, 30), (9, 99, 199))
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    assert sources.open_image(tmp_path / "a.jpg").size == (40, 30)


def test_files_beside_images_are_left_out_and_named(
    images: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = folder_images(images)
    assert not capsys.readouterr().err
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "train.txt", "LIST.CSV"):
        (images / name).write_text("no image")
    assert folder_images(images) == paths
    assert capsys.readouterr().err == (
        f"skipped in {images}, as no images: LIST.CSV, Thumbs.db, desktop.ini, train.txt\n"
    )


def test_a_folder_of_folders_or_of_lists_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "list.txt").touch()
    with pytest.raises(ImageError, match=r"no images in .*: only list\.txt; name a folder of"):
        folder_images(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(ImageError, match=r"only folders \(a, b\), which are not entered; name a"):
        folder_images(tmp_path)
