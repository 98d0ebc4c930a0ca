"""The network as a CPU computes it fastest: the same answers, gradients and parameters."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from samples import coffee, network

from imaging.metrics import psnr
from imaging.resize import modelzoo_pair
from inference.fast_cpu import AsPolynomials, ChannelsLast, _rounded, for_cpu
from inference.last_layer import ColumnsAsChannels, InFp32
from inference.restore import restore
from inference.weights import load_weights, shipped_weights
from model import SRCNN
from training.precision import FP32_CONTIGUOUS, Precision

CPU = torch.device("cpu")


def inside(model: SRCNN, x: torch.Tensor) -> torch.Tensor:
    """Return what of the network's answer no padding reaches."""
    border = slice(model.receptive_radius, -model.receptive_radius)
    return model(x)[..., border, border]


@pytest.mark.parametrize("width", [17, 18, 19, 20, 80])
@pytest.mark.parametrize("height", [17, 18, 19, 20, 80])
def test_pictures_of_every_size(height: int, width: int) -> None:
    """The second layer is computed in blocks of 4×4."""
    model, generator = network(), torch.Generator().manual_seed(3)
    x = torch.rand(1, 1, height, width, generator=generator)
    with torch.inference_mode():
        fast, expected = for_cpu(model, bf16=False)(x), inside(model, x)
    torch.testing.assert_close(fast, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel_size", "with_mkl", "expected"),
    [(5, True, AsPolynomials), (5, False, ChannelsLast), (3, True, ChannelsLast)],
)
def test_polynomials_where_they_are_faster(
    kernel_size: int, with_mkl: bool, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PyTorch's small products come one by one, as on ARM, they are not."""
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: with_mkl)
    model = network(kernel_sizes=(9, kernel_size, 5))
    x = torch.rand(1, 1, 21, 30, generator=torch.Generator().manual_seed(3))
    fast = for_cpu(model, bf16=False)
    assert type(fast.second) is expected
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), inside(model, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_polynomials_cost_less_than_a_level_of_16_bits(scale: int) -> None:
    model = load_weights(shipped_weights(scale))
    lr, _ = modelzoo_pair(coffee(240, 240), scale)
    fast, expected = restore(for_cpu(model, bf16=False), lr), restore(model, lr)
    assert np.abs(fast - expected[8:-8, 8:-8]).max() < 255 / 65535


@pytest.mark.parametrize("name", ["fp32", FP32_CONTIGUOUS])  # one for each memory format
def test_training_computes_the_published_networks_gradients(name: str) -> None:
    plain = network()
    fast = Precision(CPU, name).to_device(deepcopy(plain))
    assert list(fast.state_dict()) == list(plain.state_dict())
    x, y = torch.rand(2, 2, 1, 20, 31, generator=torch.Generator().manual_seed(3))
    for model in (plain, fast):
        (model(x) - y).square().mean().backward()
    torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=1e-5)
    for here, there in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(here.grad, there.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [ColumnsAsChannels, InFp32])  # a CPU's, and a GPU's
def test_autocast_does_not_round_the_picture(kind: type) -> None:
    model, x = network(), torch.rand(1, 32, 20, 20, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16):
        output = kind(model.conv3)(x)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, model.conv3(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel_sizes", [(9, 5, 5), (9, 1, 5), (9, 3, 7), (7, 5, 3)])
@pytest.mark.parametrize("channels", [(64, 32), (8, 4)])
def test_the_network_for_the_cpu_is_the_same(kernel_sizes: tuple, channels: tuple) -> None:
    model = network(kernel_sizes=kernel_sizes, channels=channels)
    x = torch.rand(1, 1, 44, 71, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected, fast = inside(model, x), for_cpu(model, bf16=False)(x)
        rounded = for_cpu(model, bf16=True)(x)
    torch.testing.assert_close(fast, expected, rtol=0, atol=1e-5)
    error = (rounded - expected).square().mean().sqrt()
    assert error < 0.5 / 255, "bfloat16 costs more than half a grey level"


def test_what_carries_the_picture_is_not_rounded() -> None:
    """It is neither what is brightest nor what has the greatest weights behind it.

    Of 48 feature maps, in a shuffled order, 16 carry the picture, 16 are bright and hardly counted,
    and 16 are dark and would be counted a hundred times.
    """
    model = SRCNN(channels=(48, 4), kernel_sizes=(3, 1, 3))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        kinds = ((0.7, -0.1, 0.09), (5.0, 0.0, 1e-5), (-0.7, -0.3, 9.0))
        for maps, (weight, bias, counted) in zip(order.split(16), kinds, strict=True):
            model.conv1.weight[maps, 0, 1, 1] = weight
            model.conv1.bias[maps] = bias
            model.conv2.weight[0, maps] = counted
        model.conv2.bias[0] = 0.14
        model.conv3.weight[0, 0, 1, 1] = 1.0
    x = torch.rand(1, 1, 20, 31, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        exact, rounded = inside(model, x), for_cpu(model, bf16=True)(x)
    assert exact.std() > 0.1
    assert (rounded - exact).abs().max() < 1e-5


def test_kernels_lie_as_the_cpu_reads_them_fastest() -> None:
    for bf16, count in ((False, 2), (True, 4)):
        fast = for_cpu(network(), bf16)
        layers = [layer for layer in fast.modules() if isinstance(layer, ChannelsLast)]
        assert len(layers) == count
        assert layers[0].kernels.shape[1:] == (9, 1, 9), "a channel for each row"
        assert layers[-1].kernels.shape == (8, 32, 1, 5), "rows, and idle ones"
        for layer in layers:
            assert layer.kernels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bfloat16_costs_next_to_nothing(scale: int) -> None:
    """With the shipped weights; with earlier ones plain bfloat16 cost up to 0.17 dB."""
    model = load_weights(shipped_weights(scale))
    lr, hr = modelzoo_pair(coffee(240, 240), scale)
    exact, rounded = (restore(for_cpu(model, bf16=flag), lr) for flag in (False, True))
    hr = hr[8:-8, 8:-8]
    assert (exact != rounded).any()
    assert psnr(exact, rounded) > 70
    assert abs(psnr(exact, hr) - psnr(rounded, hr)) < 0.002


def test_kernels_rounded_to_bfloat16_keep_their_sums() -> None:
    torch.manual_seed(1)
    kernels = torch.randn(8, 6, 5, 5)
    rounded = _rounded(kernels)
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert (rounded - kernels).abs().max() < 2**-7 * kernels.abs().max()
    for rows, share in ((5, 0.4), (3, 0.5)):  # at the end, and on the way
        off, nearest = (
            (each - kernels)[:, :, :rows].sum((2, 3)).abs().mean()
            for each in (rounded, kernels.bfloat16())
        )
        assert off < share * nearest
