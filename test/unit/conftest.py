"""What the tests share."""

import inspect
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest
from needs import public_images
from selenium.webdriver import Chrome

import runtime  # noqa: F401 - so that onnxruntime sends nothing

ROOT = Path(__file__).resolve().parents[2]
TESTS = str(ROOT / "test")
STARTERS = (subprocess, Chrome)
PUBLIC = {"t91", "set5"}
NOTED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts a process, by a helper or fixture too, and what needs public images."""
    seen: dict[Callable, bool] = {}
    for item in items:
        fixtures = [each[-1].func for each in item._fixtureinfo.name2fixturedefs.values()]
        if any(starts_process(function, seen) for function in (item.function, *fixtures)):
            item.add_marker("command")
        if PUBLIC & set(item.fixturenames):
            item.add_marker("images")


def starts_process(thing: object, seen: dict) -> bool:
    """Tell whether a function, or a class's methods, of the tests can reach what starts one."""
    if any(thing is starter for starter in STARTERS):
        return True
    if isinstance(thing, type):
        return any(starts_process(member, seen) for member in vars(thing).values())
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if not isinstance(thing, FunctionType) or not thing.__code__.co_filename.startswith(TESTS):
        return False
    if thing not in seen:
        seen[thing] = False  # for what calls itself
        used = set(names(thing.__code__))
        found = [thing.__globals__.get(name) for name in used]
        for place in filter(is_helper, list(found)):
            found += [vars(place).get(name) for name in used]
        seen[thing] = any(starts_process(each, seen) for each in found)
    return seen[thing]


def is_helper(thing: object) -> bool:
    """Tell whether a thing is a module of the tests, whose functions are called by its name."""
    file = getattr(thing, "__file__", None) if isinstance(thing, ModuleType) else None
    return (file or "").startswith(TESTS)


def names(code: CodeType) -> Iterator[str]:
    """Yield the names that code looks up, globals and attributes, in functions inside it, too."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names(inner)


@pytest.fixture(scope="session")
def t91() -> Path:
    """The folder with the public training images."""
    return public_images("T91", "Train", 91)


@pytest.fixture(scope="session")
def set5() -> Path:
    """The folder with the public evaluation images."""
    return public_images("Set5", "Test/Set5", 5)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with 44 patches, 6 images to crop from and 3 to evaluate."""
    from dataset_files import save_dataset

    return save_dataset(tmp_path_factory.mktemp("data set with spaces"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that change a picture visibly."""
    from samples import save_weights

    return save_weights(tmp_path_factory.mktemp("weights") / "w.pth")


@pytest.fixture
def handlers() -> Iterator[None]:
    """The process's handlers of the signals that a training run notes, put back afterwards."""
    before = {signum: signal.getsignal(signum) for signum in NOTED}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images whose order by number is not their order by path."""
    from expected_files import save_image

    folder = tmp_path / "some images"
    save_image(folder / "t2.png", 97, 80)
    save_image(folder / "t10.bmp", 61, 101)
    save_image(folder / "palette.png", 70, 71, "P")
    save_image(folder / "cmyk.jpg", 64, 50, "CMYK")
    save_image(folder / "alpha.png", 50, 64, "RGBA")
    save_image(folder / "grey.png", 45, 46, "L")
    (folder / ".hidden").write_text("no image")
    (folder / "more").mkdir()
    return folder
