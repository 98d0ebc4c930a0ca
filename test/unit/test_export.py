"""ONNX files: what is in them, and that they do what PyTorch does."""

import importlib.util
import re
import sys
from pathlib import Path

import commands
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from samples import network, save_weights

import export
from imaging.sources import SAMPLE_EVAL, SAMPLE_TRAIN
from inference import onnx_graph
from runtime.errors import RunError, UserError


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Set the command line of export.py, which writes tmp_path/x.onnx."""

    def set_arguments(*words: object) -> Path:
        path = tmp_path / "x.onnx"
        monkeypatch.setattr(sys, "argv", ["export.py", "--output", str(path), *map(str, words)])
        return path

    return set_arguments


def output(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": x})[0]


def expected(x: np.ndarray, **options) -> np.ndarray:
    with torch.inference_mode():
        return network(**options)(torch.from_numpy(x)).numpy()


def picture(height: int, width: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(5).random((1, channels, height, width), dtype=np.float32)


def test_command_line(tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "w.pth")
    path = tmp_path / "new" / "x.onnx"
    result = commands.run("export.py", "--weights", weights, "--output", path)
    assert result.returncode == 0, result.stderr
    checked = re.findall(r"^(\w+), \d+×\d+: largest difference from PyTorch", result.stdout, re.M)
    assert checked == [Path(name).stem for name in (*SAMPLE_EVAL, *SAMPLE_TRAIN)]
    assert [p.name for p in path.parent.iterdir()] == ["x.onnx"]
    graph = onnx.load(path)
    assert [(i.domain, i.version) for i in graph.opset_import] == [("", 11)]
    assert [n.op_type for n in graph.graph.node] == ["Conv", "Relu", "Conv", "Relu", "Conv"]
    for end, name in ((graph.graph.input, "input"), (graph.graph.output, "output")):
        assert [value.name for value in end] == [name]
        dimensions = end[0].type.tensor_type.shape.dim
        assert [d.dim_value or d.dim_param for d in dimensions] == ["batch", 1, "height", "width"]
    for shape, count in (((33, 70), 1), ((1, 1), 1), ((20, 31), 3)):
        x = np.concatenate([picture(*shape) * (1 - i / 5) for i in range(count)])
        np.testing.assert_allclose(output(path, x), expected(x), rtol=0, atol=4e-6)
    result = commands.run("export.py", "--weights", tmp_path / "no.pth")
    commands.assert_one_line_error(result, "no.pth")


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize("fp16", [False, True])
def test_fixed_size_precision_and_opset(arguments, tmp_path: Path, fp16: bool, opset: int) -> None:
    weights = save_weights(tmp_path / "w.pth")
    path = arguments("--weights", weights, "--size", 40, 56, "--opset", opset, *["--fp16"] * fp16)
    export.main()
    model = onnx.load(path)
    assert model.opset_import[0].version == opset
    assert model.ir_version <= 8, "newer than the ONNX 1.12 that CANN is built on"
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    written = [{a.name: list(a.ints) for a in node.attribute} for node in layers]
    sizes = [{"kernel_shape": [k, k], "pads": [k // 2] * 4} for k in (9, 5, 5)]
    assert written == sizes, "not every reader infers them"
    kinds = {t.data_type for t in model.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16 if fp16 else onnx.TensorProto.FLOAT}
    assert path.stat().st_size < (120_000 if fp16 else 235_000)
    x = picture(40, 56)
    difference = np.abs(output(path, x) - expected(x)).max()
    assert difference < (0.5 / 255 if fp16 else 1e-5)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        output(path, picture(41, 56))


def test_other_shapes_of_the_network(arguments, tmp_path: Path) -> None:
    options = {"kernel_sizes": (9, 1, 5), "channels": (16, 8), "num_channels": 3}
    path = arguments(
        *("--weights", save_weights(tmp_path / "w.pth", network(**options))),
        *("--scale", 2, "--size", 20, 30),
    )
    export.main()
    x = picture(20, 30, channels=3)
    np.testing.assert_allclose(output(path, x), expected(x, **options), rtol=0, atol=1e-5)


def test_published_weights_load(arguments, tmp_path: Path) -> None:
    """A state dict as others save it: an OrderedDict with these keys, and nothing else."""
    shapes = {"conv1": (64, 1, 9, 9), "conv2": (32, 64, 5, 5), "conv3": (1, 32, 5, 5)}
    state = torch.nn.Module().state_dict()
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.full(shape, 0.001)
        state[f"{name}.bias"] = torch.zeros(shape[0])
    torch.save(state, tmp_path / "srcnn_x3.pth")
    path = arguments("--weights", tmp_path / "srcnn_x3.pth", "--size", 41, 41)
    export.main()
    middle = output(path, np.ones((1, 1, 41, 41), np.float32))[0, 0, 20, 20]
    assert middle == pytest.approx(0.081 * 64 * 0.025 * 32 * 0.025, rel=1e-5)


def test_a_file_that_differs_is_not_written(
    arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = arguments("--weights", save_weights(tmp_path / "w.pth"), "--size", 24, 24)
    build = onnx_graph.build

    def wrong(model: torch.nn.Module, *rest: object) -> onnx.ModelProto:
        other = network()
        other.conv3.bias.data += 1e-3
        return build(other, *rest)

    monkeypatch.setattr(onnx_graph, "build", wrong)
    path.write_bytes(b"earlier")
    with pytest.raises(RunError, match=r"differs by 1\.0e-03 on camera"):
        export.main()
    assert path.read_bytes() == b"earlier"


@pytest.mark.filterwarnings("error")  # as of a provider that onnxruntime does not know
def test_the_largest_difference_is_that_of_the_worst_pixel() -> None:
    model = network(num_channels=3)
    graph = onnx_graph.build(model, None, fp16=False, opset=11)
    luminance = picture(12, 19)[0, 0]
    assert onnx_graph.largest_difference(model, graph, luminance) < 1e-5
    with torch.no_grad():
        model.conv3.bias -= torch.tensor([0.0, 0.5, 0.25])
    difference = onnx_graph.largest_difference(model, graph, luminance)
    assert difference == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_shipped_weights_go_into_fp16(arguments, scale: int) -> None:
    path = arguments("--scale", scale, "--fp16")
    export.main()
    assert path.stat().st_size < 120_000


@pytest.mark.parametrize("shipped", [False, True])
def test_the_weights_are_not_overwritten(
    arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: bool
) -> None:
    weights = save_weights(tmp_path / "srcnn_x3.pth")
    (tmp_path / "x.onnx").symlink_to(weights)
    monkeypatch.setattr("inference.weights.SHIPPED", tmp_path)
    path = arguments() if shipped else arguments("--weights", weights)
    with pytest.raises(UserError, match=f"^--output {path} is read here; name another file$"):
        export.main()


def test_fp16_is_tried_on_every_photograph(
    arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = arguments("--weights", save_weights(tmp_path / "w.pth"), "--size", 9, 9, "--fp16")
    differences = iter([0.0] * (len(SAMPLE_EVAL + SAMPLE_TRAIN) - 1) + [1.0])
    monkeypatch.setattr(onnx_graph, "largest_difference", lambda *_: next(differences))
    with pytest.raises(RunError, match=r"fp16 differs by 1.* on text, "):
        export.main()
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_what_is_no_number_in_fp16_is_not_written(arguments, tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.conv2.bias[0], model.conv2.weight[0] = -1, 0  # ReLU makes 0 of it
        model.conv3.weight[:, 0] = 70_000  # infinite in fp16, and 0 times infinity is no number
    torch.save(model.state_dict(), tmp_path / "w.pth")
    path = arguments("--weights", tmp_path / "w.pth", "--size", 16, 16, "--fp16")
    with pytest.raises(RunError, match="fp16 differs by nan on camera"):
        export.main()
    assert not path.exists()


def test_onnxruntime_sends_nothing_and_keeps_no_number_of_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    words = ("--weights", save_weights(tmp_path / "w.pth"), "--output", tmp_path / "x.onnx")
    home = tmp_path / "home"
    home.mkdir()
    places = {"HOME": str(home), "XDG_CACHE_HOME": "", "TMPDIR": str(home)}
    result = commands.run("export.py", *words, env=places)
    assert result.returncode == 0, result.stderr
    assert list(home.iterdir()) == []


def test_without_onnxruntime(arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments("--weights", "w.pth")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else find_spec(name)
    )
    with pytest.raises(UserError, match="pip install onnx onnxruntime"):
        export.main()


def test_an_onnx_that_cannot_be_loaded(arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the protobuf of CANN, which is too old for it."""
    path = arguments("--weights", "w.pth")
    monkeypatch.delitem(sys.modules, "inference.onnx_graph", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"onnx .*cannot be imported \(.*onnx.*\); .*environment"):
        export.main()
    assert not path.exists()


def test_what_is_not_asked_for() -> None:
    args = vars(export.parse_args([]))
    expected = {"weights": None, "scale": 3, "size": None, "fp16": False, "opset": 11}
    assert args == expected | {"output": Path("srcnn_x3.onnx")}
    assert export.parse_args(["--scale=4"]).output == Path("srcnn_x4.onnx")
    assert export.parse_args(["--output=a/b.onnx"]).output == Path("a/b.onnx")


@pytest.mark.parametrize(
    "words",
    [
        *(["--opset=8"], ["--opset=19"], ["--scale=0"], ["--size=9"]),
        *(["--size", "4096", "4097"], ["--size", "4097", "4096"]),
    ],
)
def test_what_cannot_be_exported(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        export.parse_args(words)
    assert end.value.code == 2
    (*_, line) = capsys.readouterr().err.splitlines()
    assert f"error: {'argument ' * ('4097' not in words)}{words[0].partition('=')[0]}: " in line
    assert export.parse_args(["--size", "4096", "4096", "--opset=18"]).size == [4096, 4096]


def test_help_says_that_the_height_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.parse_args(["--help"])
    assert "--size H W " in capsys.readouterr().out


def test_main_takes_its_words_and_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest", "--no-such-option"])
    allowed = export.TOLERANCE["fp32"]
    monkeypatch.setattr(onnx_graph, "largest_difference", lambda *_: allowed)
    path = tmp_path / "x.onnx"
    export.main([f"--output={path}", "--size", "16", "12", "--scale=2", "--opset=13"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{path}: weights/srcnn_x2.pth, fp32, 16×12, opset 13"
    weights = save_weights(tmp_path / "w.pth")
    export.main([f"--output={path}", f"--weights={weights}", "--fp16"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{path}: {weights}, fp16, any size, opset 11"


def test_photographs_are_enlarged_from_the_size_that_is_asked_for() -> None:
    names, pictures = zip(*export.photographs(40, [80, 30]), strict=True)
    assert len(set(names)) == len(SAMPLE_EVAL + SAMPLE_TRAIN)
    for luminance in pictures:
        assert luminance.shape == (80, 30)
        assert (luminance[0] == luminance[0, 0]).all(), "one pixel wide before"
        assert 0 <= luminance.min() <= luminance.max() <= 1
    assert any((luminance[0] != luminance[-1]).any() for luminance in pictures), "two pixels high"
    _, luminance = next(export.photographs(40, [30, 80]))
    assert (luminance[:, 0] == luminance[0, 0]).all(), "one pixel high before"
