"""evaluate.py as its users meet it: figures, files, mistakes."""

import base64
import json
import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import commands
import h5py
import numpy as np
import pytest
import torch
from dataset_files import blocks, save_images
from PIL import Image
from runs import start
from samples import coffee, opened, save_weights

import evaluate
from imaging.metrics import PROTOCOLS
from imaging.resize import modelzoo_pair
from inference.restore import restore, self_ensemble
from inference.samples import read_dataset, read_folder
from inference.weights import load_weights
from model import SRCNN, identity_init
from runtime.device import Choice
from runtime.errors import RunError, run_main

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ["bicubic_psnr", "srcnn_psnr", "bicubic_ssim", "srcnn_ssim"]
RNG = np.random.default_rng(5)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a colour and a greyscale picture."""
    folder = tmp_path / "images"
    folder.mkdir()
    coffee(61, 47).save(folder / "colour.png")
    coffee(40, 52).convert("L").save(folder / "grey.bmp")
    return folder


@pytest.fixture
def copying(tmp_path: Path) -> Path:
    """Weights that return their input."""
    model = SRCNN(channels=(4, 3), kernel_sizes=(3, 1, 3))
    identity_init(model, std=0.0)
    return save_weights(tmp_path / "copying.pth", model)


@pytest.fixture
def sharpening(tmp_path: Path) -> Path:
    """Weights that change something, differently in each direction."""
    torch.manual_seed(0)
    model = SRCNN(channels=(4, 3), kernel_sizes=(3, 1, 3))
    identity_init(model, std=0.02)
    return save_weights(tmp_path / "sharpening.pth", model)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run the command with arguments; return (exit status, JSON result or None)."""

    def command(*arguments: object) -> tuple[int, dict | None]:
        file = tmp_path / "result.json"
        options = ["--device", "cpu", "--json", str(file), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["pytest", "--no-such-option"])
        status = run_main(lambda: evaluate.main(options))
        return status, json.loads(file.read_text("utf-8")) if file.is_file() else None

    return command


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_the_json_file_has_the_promised_shape(run, images, sharpening, protocol) -> None:
    status, result = run(
        "--images-dir", images, "--weights", sharpening, "--scale", 2, "--protocol", protocol
    )
    assert status == 0
    assert list(result) == ["protocol", "scale", "weights", "images", "mean"]
    assert (result["protocol"], result["scale"]) == (protocol, 2)
    assert result["weights"] == str(sharpening)
    assert [image["name"] for image in result["images"]] == ["colour", "grey"]
    assert all(list(image) == ["name", *FIGURES] for image in result["images"])
    assert list(result["mean"]) == FIGURES
    for key in FIGURES:
        assert result["mean"][key] == pytest.approx(np.mean([i[key] for i in result["images"]]))
    assert result["mean"]["srcnn_psnr"] != pytest.approx(result["mean"]["bicubic_psnr"], abs=0.01)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_a_network_that_copies_has_the_figures_of_bicubic(run, images, copying, protocol) -> None:
    _, result = run("--images-dir", images, "--weights", copying, "--protocol", protocol)
    for image in result["images"]:
        assert image["srcnn_psnr"] == pytest.approx(image["bicubic_psnr"], abs=1e-3)
        assert image["srcnn_ssim"] == pytest.approx(image["bicubic_ssim"], abs=1e-4)


def test_the_table_says_what_it_is(run, images, copying, capsys) -> None:
    _, result = run("--images-dir", images, "--weights", copying, "--protocol", "paper")
    head, *_, mean = capsys.readouterr().out.splitlines()
    assert head == f"x3, protocol paper, weights {copying}"
    assert mean.split()[:2] == ["mean", f"{result['mean']['bicubic_psnr']:.2f}"]
    run("--images-dir", images, "--weights", copying, "--self-ensemble")
    assert capsys.readouterr().out.splitlines()[0].endswith("self-ensemble")


FOUR = dict(zip(FIGURES, (30.254, 32.5, 0.81239, 0.9), strict=True))
RESULT = {
    "protocol": "paper",
    "scale": 4,
    "weights": "w.pth",
    "images": [
        {"name": "bär", **FOUR},
        {"name": "a longer one", **FOUR, "srcnn_psnr": math.inf, "bicubic_psnr": 101.2},
        {"name": "flat", **FOUR, "srcnn_psnr": math.inf, "bicubic_psnr": math.inf},
    ],
    "mean": {**FOUR, "srcnn_psnr": 29.0},
}


def test_the_table_line_by_line() -> None:
    assert evaluate.table(RESULT, ", note").splitlines() == [
        "x4, protocol paper, weights w.pth, note",
        "                 bicubic          SRCNN     ",
        "image           PSNR    SSIM    PSNR    SSIM    gain",
        "bär            30.25  0.8124   32.50  0.9000   +2.25",
        "a longer one  101.20  0.8124     inf  0.9000    +inf",
        "flat             inf  0.8124     inf  0.9000   +0.00",
        "mean           30.25  0.8124   29.00  0.9000   -1.25",
    ]
    short = evaluate.table({**RESULT, "images": []}, "")
    assert short.splitlines()[2].startswith("image    PSNR")


def test_the_json_file_letter_by_letter() -> None:
    text = evaluate.to_json(RESULT)
    assert text.startswith('{\n  "protocol": "paper",\n  "scale": 4,')
    assert text.endswith('"srcnn_ssim": 0.9\n  }\n}\n')
    assert '"name": "bär"' in text
    perfect = {**RESULT["images"][1], "srcnn_psnr": None}
    flat = {**RESULT["images"][2], "srcnn_psnr": None, "bicubic_psnr": None}
    assert json.loads(text) == {**RESULT, "images": [RESULT["images"][0], perfect, flat]}


@pytest.mark.parametrize("ensemble", [False, True])
def test_the_report_shows_what_was_measured(
    run, images, sharpening, tmp_path, capsys, ensemble: bool
) -> None:
    """Of a picture it shows bicubic, the result as it is measured, and the original."""
    (tmp_path / "log.csv").write_text("epoch,loss,psnr\n0,0.5,30.5\n1,0.25,31.5\n")
    words = ["--images-dir", images, "--weights", sharpening, "--scale=2", "--protocol=paper"]
    words += ["--report", tmp_path / "new" / "report", "--training-log", tmp_path / "log.csv"]
    status, result = run(*words, *["--self-ensemble"] * ensemble)
    assert status == 0
    page = tmp_path / "new" / "report" / "index.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {page}"
    text = page.read_text("utf-8")
    for image in result["images"]:
        assert f"{image['bicubic_psnr']:.2f} dB" in text
        assert f"{image['srcnn_psnr']:.2f} dB" in text
    assert ("self-ensemble" in text) == ensemble
    assert "Loss" in text
    paper, model = PROTOCOLS["paper"], load_weights(sharpening)
    with Image.open(images / "grey.bmp") as grey:
        bicubic, original = paper.visible_pair(grey, 2)
        output = paper.finish(restore(model, paper.pair(grey, 2)[0], ensemble))
    shown = [opened(base64.b64decode(each)) for each in re.findall('"data:.*?;base64,(.*?)"', text)]
    shown = [each[..., 0] for each in shown if each.shape[:2] == original.shape]
    assert len(shown) == 3
    for seen, picture in zip(shown, (bicubic, output, original), strict=True):
        assert (seen == picture).all()
    assert [path.suffix for path in sorted(page.parent.iterdir())] == [".png", ".png", ".html"]


def test_a_report_that_cannot_be_written_is_told_before_the_work(
    images, copying, tmp_path, capsys
) -> None:
    (tmp_path / "file").touch()
    words = ["--images-dir", "none", "--weights", "none", "--report", tmp_path / "file"]
    assert run_main(lambda: evaluate.main([str(word) for word in words])) == 1
    assert "index.html" in capsys.readouterr().err


def test_weights_that_overflow(run, images, sharpening, tmp_path, capsys) -> None:
    state = {key: 1e30 * w for key, w in torch.load(sharpening, weights_only=True).items()}
    torch.save(state, tmp_path / "huge.pth")
    assert run("--images-dir", images, "--weights", tmp_path / "huge.pth") == (1, None)
    message = capsys.readouterr().err
    assert "huge.pth make values that are not finite of colour" in message


def write_dataset(path: Path, folder: Path, names: bool) -> None:
    """Write an evaluation file as prepare.py does."""
    path.parent.mkdir(parents=True)
    paths = sorted(folder.iterdir())
    with h5py.File(path, "w") as file:
        for i, image in enumerate(paths):
            file[f"lr/{i}"], file[f"hr/{i}"] = modelzoo_pair(Image.open(image), 3)
        if names:
            file.attrs["names"] = [image.stem for image in paths]


@pytest.mark.parametrize("name", ["Set5_x3.h5", "sample_x3.h5"])
def test_a_dataset_file_gives_what_its_images_give(
    run, images, sharpening, tmp_path, name: str
) -> None:
    write_dataset(tmp_path / "dataset" / "val" / name, images, names=True)
    _, expected = run("--images-dir", images, "--weights", sharpening)
    _, result = run("--data-path", tmp_path / "dataset", "--weights", sharpening)
    for a, b in zip(result["images"], expected["images"], strict=True):
        assert a["name"] == b["name"]
        assert [a[key] for key in FIGURES] == pytest.approx([b[key] for key in FIGURES], abs=1e-4)


def test_shipped_weights_are_the_default(run, images, copying, tmp_path, monkeypatch) -> None:
    (tmp_path / "shipped").mkdir()
    copying.rename(tmp_path / "shipped" / "srcnn_x2.pth")
    monkeypatch.setattr("inference.weights.SHIPPED", tmp_path / "shipped")
    status, result = run("--images-dir", images, "--scale", 2)
    assert status == 0
    assert result["weights"] == str(Path("weights", "srcnn_x2.pth"))


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_shipped_weights_reach_what_their_card_says(
    run, set5: Path, scale: int, protocol: str
) -> None:
    card = (ROOT / "weights/README.md").read_text()
    row = re.search(rf"^\| x{scale} \| {protocol} \| (.*?) \| (.*?) \|", card, re.MULTILINE)
    _, result = run("--images-dir", set5, "--scale", scale, "--protocol", protocol)
    for text, name in zip(row.groups(), ("bicubic", "srcnn"), strict=True):
        psnr, ssim = (float(figure) for figure in text.split(", "))
        assert result["mean"][f"{name}_psnr"] == pytest.approx(psnr, abs=0.006)
        assert result["mean"][f"{name}_ssim"] == pytest.approx(ssim, abs=0.0001)


def test_a_dataset_file_without_names_numbers_its_images(run, images, copying, tmp_path) -> None:
    write_dataset(tmp_path / "dataset" / "val" / "Set5_x3.h5", images, names=False)
    _, result = run("--data-path", tmp_path / "dataset", "--weights", copying)
    assert [image["name"] for image in result["images"]] == ["0", "1"]


def test_a_perfect_image_is_null_in_json(run, copying, tmp_path) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("L", (30, 30), 120).save(tmp_path / "flat" / "flat.png")
    status, result = run(
        "--images-dir", tmp_path / "flat", "--weights", copying, "--protocol", "paper"
    )
    assert status == 0
    assert result["images"][0]["bicubic_psnr"] is None
    assert result["mean"]["bicubic_psnr"] is None
    assert result["mean"]["bicubic_ssim"] == pytest.approx(1.0)


def _damage(folder: Path) -> None:
    whole = (folder / "colour.png").read_bytes()
    (folder / "colour.png").write_bytes(whole[: len(whole) // 2])


def _shrink(folder: Path) -> None:
    coffee(40, 16).save(folder / "small.png")


def _deepen(folder: Path) -> None:
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(folder / "deep.png")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_damage, ["colour.png"]),
        (_shrink, ["small.png", "40×16", "18 pixels"]),
        (_deepen, ["deep.png", "8 bits"]),
        (_empty, ["no images in", "it is empty; name a folder of images that can be read"]),
    ],
)
def test_images_that_cannot_be_measured_are_named(
    run, images, copying, capsys, spoil, words
) -> None:
    spoil(images)
    status, result = run("--images-dir", images, "--weights", copying, "--protocol", "paper")
    assert (status, result) == (2, None)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert all(word in message for word in words), message


def test_the_smallest_image_that_can_be_measured(run, copying, tmp_path) -> None:
    """18 pixels are 11 for SSIM and 3 of border to each side, cut to a multiple of 3."""
    (tmp_path / "small").mkdir()
    coffee(18, 20).save(tmp_path / "small" / "small.png")
    arguments = ["--images-dir", tmp_path / "small", "--weights", copying, "--protocol", "paper"]
    assert run(*arguments)[0] == 0


def test_weights_that_do_not_fit(run, images, tmp_path, capsys) -> None:
    colour = save_weights(tmp_path / "colour.pth", SRCNN(channels=(4, 3), num_channels=3))
    assert run("--images-dir", images, "--weights", colour) == (2, None)
    assert "3 channels" in capsys.readouterr().err
    assert run("--images-dir", images, "--weights", tmp_path / "none.pth") == (2, None)
    assert "none.pth" in capsys.readouterr().err
    assert run("--images-dir", images, "--scale", 7) == (2, None)
    assert "x7" in capsys.readouterr().err


def test_help_names_what_an_option_takes(capsys) -> None:
    with pytest.raises(SystemExit):
        evaluate.parse_args(["--help"])
    *_, options = capsys.readouterr().out.partition("options:")
    for words in ("--json FILE", "--report DIR", "--training-log CSV"):
        assert f"  {words} " in options


def test_what_is_not_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--images-dir=a"])
    given = {"images_dir": Path("a"), "scale": 3, "protocol": "modelzoo", "device": "auto"}
    absent = dict.fromkeys(("data_path", "weights", "json", "report", "training_log"))
    assert vars(evaluate.parse_args()) == given | absent | {"self_ensemble": False}
    names = ("data-path", "weights", "json", "report", "training-log")
    args = vars(evaluate.parse_args([f"--{name}=my-{name}" for name in names]))
    assert [args[name] for name in absent] == [Path(f"my-{name}") for name in names]
    for device in ("auto", "npu", "cuda", "cpu"):
        assert evaluate.parse_args(["--images-dir=a", f"--device={device}"]).device == device


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data-path", "dataset", "--protocol", "paper"], "use --images-dir"),
        (["--images-dir", "Set5", "--data-path", "dataset"], "not allowed with"),
        (["--images-dir", "Set5", "--training-log", "metrics.csv"], "add --report DIR"),
        (["--images-dir", "Set5", "--report", "./Set5/"], "is the folder of the images; name an"),
        (["--images-dir", "loop", "--report", "loop"], "is the folder of the images; name an"),
        (["--images-dir", "Set5", "--scale", "0"], "1 or more"),
        (["--images-dir", "Set5", "--protocol", "mine"], "mine"),
        (["--images-dir", "Set5", "--device", "tpu"], "tpu"),
        ([], "--images-dir --data-path"),
    ],
)
def test_options_that_do_not_go_together(arguments, words, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(SystemExit) as ending:
        evaluate.main(arguments)
    assert ending.value.code == 2
    *_, message = capsys.readouterr().err.partition("error: ")
    assert words in message


def test_what_is_read_is_not_written_over(
    run, images, copying, tmp_path, capsys, monkeypatch
) -> None:
    dataset, log = tmp_path / "val" / "Set5_x3.h5", tmp_path / "metrics.csv"
    dataset.parent.mkdir()
    for path in (dataset, log):
        path.touch()
    (tmp_path / "link").symlink_to(copying)
    (tmp_path / "srcnn_x3.pth").symlink_to(copying)
    monkeypatch.setattr("inference.weights.SHIPPED", tmp_path)
    pictures = ["--images-dir", images, "--weights", copying]
    for file, source in (
        (copying, ["--images-dir", images]),
        (copying, pictures),
        (tmp_path / "link", pictures),
        (images / "grey.bmp", pictures),
        (dataset, ["--data-path", tmp_path]),
        (log, [*pictures, "--report", tmp_path / "page", "--training-log", log]),
    ):
        before = file.read_bytes()
        assert run(*source, "--json", file) == (2, None)
        message = f"error: --json {file} is read here; name another file\n"
        assert capsys.readouterr().err == message
        assert file.read_bytes() == before


def test_a_result_beside_its_images_is_made_anew(images, copying) -> None:
    file, options = images / "result.json", ["--weights", str(copying), "--device=cpu"]
    for _ in range(2):
        evaluate.main(["--images-dir", str(images), "--json", str(file), *options])
    assert json.loads(file.read_text("utf-8"))["images"]


def test_a_result_that_cannot_be_written(monkeypatch, images, copying, tmp_path, capsys) -> None:
    (tmp_path / "folder").mkdir()
    options = ["--images-dir", images, "--weights", copying, "--json", tmp_path / "folder"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, options)])
    assert run_main(evaluate.main) == 1
    assert "cannot write" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copying.pth", "folder", "images"]


def test_an_image_that_is_too_large_for_the_memory(monkeypatch, images, copying) -> None:
    def restore(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore")

    monkeypatch.setattr("inference.restore.restore", restore)
    with pytest.raises(RunError, match=r"not enough memory for \S+, \d+×\d+; cut it in pieces"):
        evaluate.main(["--images-dir", str(images), "--weights", str(copying)])


def test_a_gpu_is_measured_in_fp32(monkeypatch, images) -> None:
    """Not in TF32, its default."""

    class EnoughError(Exception):
        pass

    def to(device: torch.device) -> None:
        assert device == torch.device("cuda")
        assert not torch.backends.cudnn.allow_tf32
        raise EnoughError

    gpu, model = Choice(torch.device("cuda"), "as asked"), SimpleNamespace(to=to)
    monkeypatch.setattr("runtime.device.choose_device", lambda _: gpu)
    monkeypatch.setattr("inference.weights.load_luminance_weights", lambda _: model)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(EnoughError):
        evaluate.main([f"--images-dir={images}"])


def test_self_ensemble_turns_with_its_input() -> None:
    torch.manual_seed(1)
    model = SRCNN(channels=(4, 3), kernel_sizes=(3, 1, 3))
    x = torch.rand(2, 1, 9, 14)
    with torch.no_grad():
        y = self_ensemble(model, x)
        plain = model(x)
        for turns in range(4):
            turned = torch.rot90(x, turns, (2, 3))
            expected = torch.rot90(y, turns, (2, 3))
            torch.testing.assert_close(self_ensemble(model, turned), expected)
        torch.testing.assert_close(self_ensemble(model, x.flip(2)), y.flip(2))
    assert not torch.allclose(plain, y)


def test_restore_works_in_0_to_255() -> None:
    model = SRCNN(channels=(4, 3), kernel_sizes=(3, 1, 3))
    identity_init(model, std=0.0)
    luminance = RNG.uniform(0, 255, (12, 17))
    for ensemble in (False, True):
        np.testing.assert_allclose(restore(model, luminance, ensemble), luminance, atol=1e-3)


def test_set5_figures_reach_the_result(run, copying, set5: Path) -> None:
    _, result = run("--images-dir", set5, "--weights", copying)
    assert result["mean"]["bicubic_psnr"] == pytest.approx(30.92, abs=0.005)
    assert len(result["images"]) == 5


def test_no_name_forges_a_row_or_colours_the_terminal() -> None:
    row = {**RESULT["mean"], "name": "a\nmean \x1b[31m"}
    lines = evaluate.table({**RESULT, "images": [row], "weights": "w\n.pth"}, "").split("\n")
    assert lines[0].endswith(r" w\n.pth")
    assert [line.partition("  ")[0] for line in lines[3:]] == [r"a\nmean \x1b[31m", "mean"]


@pytest.mark.command
def test_what_pillow_warns_of_stays_out_of_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    coffee(60, 48).convert("P").save(folder / "a.png", transparency=bytes([0, 99]))
    done = commands.run("evaluate.py", "--images-dir", folder, "--device=cpu")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("locale", ["C.UTF-8", "POSIX"])
def test_names_that_are_no_utf_8_and_locales_that_are_not(tmp_path: Path, locale: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image = coffee(60, 48)
    image.save(folder / "caf\udce9.png")  # the byte 0xe9
    image.save(folder / "图.png")
    env = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    file = tmp_path / "data/val/Set5_x3.h5"
    words = (f"--images-dir={folder}", f"--output-path={file}", "--scale=3", "--eval")
    result = commands.run("prepare.py", *words, env=env)
    assert result.returncode == 0, result.stderr
    places = (f"--json={tmp_path / 'a.json'}", f"--report={tmp_path / 'report'}")
    for source in (f"--images-dir={folder}", f"--data-path={tmp_path / 'data'}"):
        result = commands.run("evaluate.py", source, *places, env=env)
        assert result.returncode == 0, result.stderr
        names = [each["name"] for each in json.loads((tmp_path / "a.json").read_text())["images"]]
        assert names == ["caf\ufffd", "图"]
        assert "图" in (tmp_path / "report/index.html").read_text(encoding="utf-8")


def test_a_photograph_is_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    coffee(60, 40).save(tmp_path / "a.jpg", exif=exif)
    exif[0x010F] = "a"
    broken = exif.tobytes().replace(b"\x01\x0f\0\2", b"\x01\0\0\2")  # a width that is a text
    coffee(60, 40).save(tmp_path / "broken.jpg", exif=broken)
    sample, broken = read_folder(tmp_path, 2, PROTOCOLS["modelzoo"])
    assert sample.original.shape == sample.visible_original.shape[:2] == (60, 40)
    assert broken.original.shape == (40, 60)


def test_sigterm_ends_it_as_ctrl_c_does(set5: Path, tmp_path: Path) -> None:
    """What is half-written goes. Here it waits for a log that is a pipe."""
    os.mkfifo(tmp_path / "log.csv")
    words = [f"--images-dir={set5}", f"--report={tmp_path}", f"--training-log={tmp_path}/log.csv"]
    process = start(commands.ROOT / "evaluate.py", *words)
    with (tmp_path / "log.csv").open("w"):  # once it reads
        process.terminate()
        assert process.wait(commands.HANG) == 143


def test_what_people_see_of_a_dataset_file(tmp_path: Path) -> None:
    """Each side rounded, of an image that is just large enough."""
    (tmp_path / "val").mkdir()
    path = tmp_path / "val/Set5_x2.h5"
    save_images(path, [blocks(RNG, 11, 14)])
    (sample,) = read_dataset(tmp_path, 2)
    with h5py.File(path) as file:
        for group, seen in (("lr", sample.visible_bicubic), ("hr", sample.visible_original)):
            assert np.abs(seen - file[group]["0"][:].clip(0, 255)).max() < 0.51
