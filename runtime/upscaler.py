"""The network ready to enlarge pictures: on its device, as fast as that allows."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from imaging.enlarge import enlarge, silent
from imaging.photo import Photo, PictureError, open_photo
from model import SRCNN
from runtime.errors import UserError
from runtime.files import whole_file
from runtime.inference import restore
from runtime.weights import load_weights

Advance = Callable[..., object]


class Upscaler:
    """Enlarges pictures by one scale. May be called from several threads.

    Args:
        weights: a state dict of a network on luminance.
        scale: what it was trained for.
        device: where it runs.
        precision: "fp32"; "bf16", which on a CPU takes 0.6 of the time and costs 0.01 dB
            (see benchmarks/upscale.py); or "auto": bf16 where the CPU computes in it, except for
            16-bit pictures, which would show it.
        ensemble: average over flips and rotations; takes 8 times as long.
    """

    def __init__(
        self,
        weights: Path,
        scale: int,
        device: torch.device,
        precision: str = "auto",
        ensemble: bool = False,
    ) -> None:
        model = load_weights(weights)
        if model.conv1.in_channels != 1:
            raise UserError(
                f"{weights} takes {model.conv1.in_channels} channels; expected luminance alone"
            )
        self.scale, self.ensemble, self.radius = scale, ensemble, model.receptive_radius
        self.exact = for_cpu(model) if device.type == "cpu" else model.to(device)
        self.model = self.exact
        if device.type == "cpu" and (precision == "bf16" or (precision == "auto" and has_bf16())):
            self.model = for_cpu(model, torch.bfloat16)
        self.deep = self.model if precision == "bf16" else self.exact

    def enlarge(self, photo: Photo, advance: Advance = silent) -> Image.Image:
        """Return the picture enlarged; `advance` is told of each piece that is done."""
        model = self.deep if photo.image.mode == "F" else self.model
        return enlarge(
            photo.image,
            self.scale,
            lambda luminance: restore(model, luminance, self.ensemble),
            self.radius,
            advance=advance,
        )

    def enlarge_file(
        self, source: Path, target: Path, force: bool, advance: Advance
    ) -> tuple[int, str]:
        """Enlarge one file into another.

        Args:
            source: the picture.
            target: the result.
            force: overwrite what is there.
            advance: called with the pixels done and, once, with 0 and those that are to be done.

        Returns:
            The pixels of the result, and what a person should know of it, or nothing.

        Raises:
            PictureError, RunError: the picture cannot be read, or the result not written.
        """
        if target.exists() and not force:
            raise PictureError(f"{target} exists; --force overwrites it")
        photo = open_photo(source, source.name, self.scale)
        pixels = photo.image.width * photo.image.height * self.scale**2
        advance(0, pixels)
        result = self.enlarge(photo, advance)
        with whole_file(target) as temporary:
            photo.save(result, temporary)
        return pixels, photo.note


def has_bf16() -> bool:
    """Tell whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.10 or later
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def for_cpu(model: SRCNN, middle: torch.dtype = torch.float32) -> nn.Module:
    """Return a copy of the network that is faster on a CPU and takes 1×1×H×W only.

    Args:
        model: on luminance.
        middle: torch.bfloat16 rounds the inputs and weights of the second layer, nine tenths of
            the arithmetic; the first layer sees the pixels and the last one makes them, both in
            fp32.
    """
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    if middle != torch.float32:
        model.conv2 = _Rounded(model.conv2, middle)
    model.conv3 = _ColumnsAsChannels(model.conv3)
    return model


class _Rounded(nn.Module):
    """A convolution in a lower precision between fp32 neighbours."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv, self.dtype = conv.to(dtype), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.to(self.dtype)).float()


class _ColumnsAsChannels(nn.Module):
    """A convolution with one output channel, computed with one channel per kernel column.

    A single output channel leaves all but one lane of the CPU's vectors idle. Here each column of
    the kernel is a filter of its own, and the answers are added up, each shifted by its column.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.size = conv.kernel_size[0]
        columns = conv.weight.detach()[0].permute(2, 0, 1).flip(0).unsqueeze(3)
        self.weight = nn.Parameter(columns.contiguous(memory_format=torch.channels_last))
        self.bias = conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = functional.conv2d(x, self.weight, padding=(self.size // 2, 0))
        total = functional.fold(
            columns.flatten(2), x.shape[2:], (1, self.size), padding=(0, self.size // 2)
        )
        return total + self.bias
