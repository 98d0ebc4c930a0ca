"""The network: shapes, names, initialisation."""

import pytest
import torch

from imaging.metrics import psnr
from model import SRCNN, identity_init

PUBLISHED = {
    "conv1.weight": (64, 1, 9, 9),
    "conv1.bias": (64,),
    "conv2.weight": (32, 64, 5, 5),
    "conv2.bias": (32,),
    "conv3.weight": (1, 32, 5, 5),
    "conv3.bias": (1,),
}


def test_state_dict_is_the_published_one() -> None:
    state = SRCNN().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == PUBLISHED


@pytest.mark.parametrize(
    "options",
    [{}, {"kernel_sizes": (9, 1, 5)}, {"kernel_sizes": (9, 3, 5), "channels": (128, 64)},
     {"num_channels": 3}],
)  # fmt: skip
def test_size_is_kept_in_every_shape_of_the_paper(options: dict) -> None:
    x = torch.rand(2, options.get("num_channels", 1), 21, 17)
    assert SRCNN(**options)(x).shape == x.shape


@pytest.mark.parametrize("options", [{"kernel_sizes": (9, 4, 5)}, {"channels": (64,)}])
def test_impossible_shapes_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="2 channel counts and 3 odd kernel sizes"):
        SRCNN(**options)


def test_receptive_radius_is_how_far_a_pixel_reaches() -> None:
    model = SRCNN()
    x = torch.zeros(1, 1, 41, 41, requires_grad=True)
    model(x)[0, 0, 20, 20].backward()
    reached = x.grad[0, 0].abs().sum(dim=0).nonzero().flatten()
    assert model.receptive_radius == 20 - reached.min() == reached.max() - 20 == 8


@pytest.mark.parametrize("num_channels", [1, 3])
def test_identity_start_without_noise_returns_the_input(num_channels: int) -> None:
    model = SRCNN(num_channels=num_channels)
    identity_init(model, std=0.0)
    x = torch.rand(1, num_channels, 20, 20)
    torch.testing.assert_close(model(x), x)


def test_identity_start_is_close_to_the_input() -> None:
    torch.manual_seed(0)
    model = SRCNN()
    identity_init(model)
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert psnr(model(x).numpy(), x.numpy(), peak=1.0) > 28
        assert psnr(SRCNN()(x).numpy(), x.numpy(), peak=1.0) < 15
