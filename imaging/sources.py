"""Where images come from: a folder, the public T91 and Set5, the photographs of scikit-image."""

import importlib.util
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from PIL.ImageFile import StubImageFile

from imaging.kinds import is_deep, several
from runtime.errors import UserError, printable
from runtime.files import is_file

# The SHA-256 of each file: public_images.sha256, for `sha256sum -c` as well.
PUBLIC_IMAGES = (
    "https://raw.githubusercontent.com/tegg89/SRCNN-Tensorflow/"
    "78be1a24697935fc39a3a8cf59a6632264afade7"
)
MIRROR = "SRCNN_IMAGES_URL"  # environment variable: the same files at another address
CONNECT_SECONDS, READ_SECONDS = 3, 30
CONNECTIONS = 8

# Files inside scikit-image's wheel; its drawings, masks and the other half of the stereo pair, and
# pictures of no use for this (a retina, a star field), stay out.
SAMPLE_TRAIN = (
    "astronaut.png",
    "brick.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "rocket.jpg",
    "text.png",
)
SAMPLE_EVAL = ("camera.png", "chelsea.png", "coffee.png")


# Lists and notes beside images; Thumbs.db and desktop.ini. (.DS_Store is hidden.)
NO_IMAGES = {".csv", ".db", ".ini", ".json", ".md", ".txt"}
NAME_ONE = "name a folder of images that can be read"

UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


class ImageError(UserError):
    """An image, a folder or a download that cannot be used; the message says which and why."""


class NoNetworkError(ImageError):
    """The server of the public images cannot be reached."""

    exit_status = 3  # quickstart.sh then takes the sample photographs


def folder_images(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted by path; hidden files and folders are left out.

    So are lists, notes and what file managers leave, which are named on standard error.

    Raises:
        ImageError: no such folder, one that may not be entered, or no image in it.
    """
    try:
        entries = sorted(folder.iterdir())
        files = [path for path in entries if not path.name.startswith(".") and is_file(path)]
    except OSError as error:
        raise ImageError(f"no images in {folder}: {error.strerror}; {NAME_ONE}") from None
    paths = [path for path in files if path.suffix.lower() not in NO_IMAGES]
    aside = ", ".join(printable(path.name) for path in files if path not in paths)
    if not paths:
        folders = ", ".join(path.name for path in entries if path.is_dir())
        what = f"only {aside}" if aside else "it is empty"
        what = f"only folders ({folders}), which are not entered" if folders else what
        raise ImageError(f"no images in {folder}: {what}; {NAME_ONE}")
    if aside:
        print(f"skipped in {printable(folder)}, as no images: {aside}", file=sys.stderr)
    return paths


def image_name(path: Path) -> str:
    """Return the name of an image's file without its ending, as text whatever bytes are in it."""
    return os.fsencode(path.stem).decode(errors="replace")


def open_image(path: Path) -> Image.Image:
    """Read an image of 8 bits a channel, all of it.

    Raises:
        ImageError: unreadable, truncated, a decompression bomb, animated or of several pages, or
            deeper than 8 bits.
    """
    with open_header(path) as image:
        why = several(image)
        if is_deep(image):
            why = "has 16 bits a channel; save it with 8 bits a channel"
        image.load()
    if why:
        raise ImageError(f"{path} {why}")
    if image.mode.startswith(("I", "F")):  # RGB would clip nearly all of it to white
        raise ImageError(f"{path} has pixels of mode {image.mode}; save it with 8 bits a channel")
    return image


@contextmanager
def open_header(path: Path) -> Iterator[Image.Image]:
    """Open an image, of which the header alone is read so far.

    Raises:
        ImageError: it, or what the block reads of it, is no image that Pillow reads.
    """
    try:
        with Image.open(path) as image:
            if isinstance(image, StubImageFile):
                raise OSError(f"Pillow reads no {image.format}")
            yield image
    except PermissionError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from None
    except UNREADABLE as error:
        raise ImageError(
            f"{path} cannot be read as an image ({error}); mend or remove it"
        ) from None


def sample_images() -> tuple[list[Path], list[Path]]:
    """Return the photographs inside the scikit-image package, for training and for evaluation.

    Only files that its wheel carries: no network.

    Raises:
        ImageError: scikit-image is not installed, or a release without one of them.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImageError("no sample photographs: scikit-image is not installed")
    folder = Path(spec.origin).parent / "data"
    train, evaluation = ([folder / name for name in names] for names in (SAMPLE_TRAIN, SAMPLE_EVAL))
    missing = [path.name for path in train + evaluation if not path.is_file()]
    if missing:
        raise ImageError(f"this scikit-image lacks {', '.join(missing)}; install release 0.26")
    return train, evaluation


def download_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Fetch the public T91 and Set5 images that `folder` lacks, each checked by its SHA-256.

    A file gets its name only when it is whole and right; what an interruption leaves is never
    used, and the next call goes on with the files that are missing or wrong.

    Returns:
        The paths of the 91 training and the 5 evaluation images, sorted.

    Raises:
        NoNetworkError: no server can be reached.
        ImageError: a file that is not there, or one with another SHA-256.
    """
    import pooch  # noqa: PLC0415 - for downloads only
    from requests.exceptions import RequestException  # noqa: PLC0415
    from tqdm import tqdm  # noqa: PLC0415

    base = os.environ.get(MIRROR, PUBLIC_IMAGES)
    pooch.get_logger().setLevel("WARNING")
    public = pooch.create(folder, base, registry=public_registry(), retry_if_failed=1)
    downloader = pooch.HTTPDownloader(timeout=(CONNECT_SECONDS, READ_SECONDS))

    def fetch(name: str) -> Path:
        try:
            return Path(public.fetch(name, downloader=downloader))
        except (RequestException, ValueError) as error:  # ValueError: another SHA-256
            what = "try again later"
            if MIRROR in os.environ:
                what = f"does {MIRROR} name the folder of Train/ and Test/?"
            raise ImageError(
                f"cannot download {name} from {urlsplit(base).hostname}: {_reason(error)}; {what}"
            ) from None
        except OSError as error:
            raise ImageError(f"cannot write {folder / name}: {error.strerror}") from None

    tempfile.template = ".tmp"  # pooch's names: what a killed download leaves is then no image
    names = sorted(public.registry)
    if not all((folder / name).is_file() for name in names):
        _check_network(base)
    for parent in {(folder / name).parent for name in names}:  # pooch's threads would race for it
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"cannot write {parent}: {error.strerror}") from None
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        bar = tqdm(pool.map(fetch, names), "images", len(names), disable=None, leave=False)
        paths = list(bar)
    train = [path for path, name in zip(paths, names, strict=True) if name.startswith("Train/")]
    return train, [path for path in paths if path not in train]


def public_registry() -> dict[str, str]:
    """Return the SHA-256 of each public image by its path in the source."""
    lines = Path(__file__).with_name("public_images.sha256").read_text("utf-8").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def _check_network(base: str) -> None:
    """Fail within seconds where no server can be reached, before 96 files try one by one."""
    import requests  # noqa: PLC0415 - for downloads only

    try:
        requests.head(base, timeout=CONNECT_SECONDS)
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        named = (
            f", which {MIRROR} names; " if MIRROR in os.environ else f"; set {MIRROR} to a mirror, "
        )
        raise NoNetworkError(
            f"no network: cannot reach {urlsplit(base).hostname}{named}"
            f"give --train-images and --eval-images, or take --sample"
        ) from None
    except requests.exceptions.RequestException as error:
        raise ImageError(
            f"{MIRROR} is no address of a server ({_reason(error)}); expected http://… or https://…"
        ) from None


def _reason(error: Exception) -> str:
    """Say what went wrong without the address, which may hold a password or a token."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    if "SHA256" in str(error):
        return "the file has another SHA-256 than it should"
    return type(error).__name__
