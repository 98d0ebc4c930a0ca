"""The network rewritten for a CPU that enlarges pictures: the same answers, sooner."""

import torch
from torch import nn
from torch.nn import functional

from model import SRCNN

EXACT = 16  # feature maps that stay in fp32: as many as an AVX-512 vector holds
LANES = 8  # of a CPU's vectors
RESULTS, TAPS = 4, 5  # of a product of polynomials
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # where its values are taken, and at infinity
STRIP = 64  # rows whose values are taken in one go, as all would not fit into the cache


def for_cpu(model: SRCNN, bf16: bool) -> nn.Module:
    """Return a network that is faster on a CPU, and does not pad.

    It takes 1×1×H×W and returns what lies so far from the border that padding does not reach it:
    1×1×(H−2r)×(W−2r), where r is the network's `receptive_radius`.

    Args:
        model: on luminance.
        bf16: compute most of the second layer, which is nine tenths of all arithmetic, in
            bfloat16. On Set5 at ×3 that costs 0.0000 dB on average and 0.0009 dB at most
            (benchmarks/enlarging_speed.py --images-dir measures it).
    """
    if bf16 and model.conv1.out_channels > EXACT:
        return _MostlyBf16(model)
    second = RowsAsPolynomials if model.conv2.kernel_size == (TAPS, TAPS) else ChannelsLast
    return nn.Sequential(
        RowsAsInputs(model.conv1),
        nn.ReLU(inplace=True),
        second(model.conv2),
        nn.ReLU(inplace=True),
        RowsAsOutputs(model.conv3),
    )


class _MostlyBf16(nn.Module):
    """The network with the feature maps that carry the picture in fp32, the others in bfloat16.

    bfloat16 has 8 significant bits, as many as the picture. A few feature maps pass the picture
    itself on; rounded, they cost up to 0.03 dB on Set5 with weights shipped before, or more.
    The many that answer to edges are small, and so is what rounding does to them.
    """

    def __init__(self, model: SRCNN) -> None:
        super().__init__()
        order = _strength(model).argsort(descending=True)
        weak = _part(model.conv2, inputs=order[EXACT:])
        nn.init.zeros_(weak.get_parameter("bias"))  # `strong` adds it
        weak.weight.data = _rounded(weak.weight.data)
        self.first = RowsAsInputs(_part(model.conv1, outputs=order))
        self.strong = ChannelsLast(_part(model.conv2, inputs=order[:EXACT]))
        self.weak = ChannelsLast(weak.to(torch.bfloat16))
        self.last = RowsAsOutputs(model.conv3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.first(x).relu_()
        y = self.strong(maps[:, :EXACT])
        y += self.weak(maps[:, EXACT:].to(torch.bfloat16))
        return self.last(y.relu_())


def _rounded(kernels: torch.Tensor) -> torch.Tensor:
    """Round kernels to bfloat16 so that their sums stay: a weight takes what the one before lost.

    Neighbours in a feature map are alike, so it is the sums that count. The way through a kernel
    is a serpent's, from neighbour to neighbour.
    """
    result, lost = torch.empty_like(kernels), torch.zeros_like(kernels[:, :, 0, 0])
    for row in range(kernels.shape[2]):
        for step in range(kernels.shape[3]):
            column = step if row % 2 == 0 else -1 - step
            wanted = kernels[:, :, row, column] + lost
            result[:, :, row, column] = wanted.to(torch.bfloat16)
            lost = wanted - result[:, :, row, column]
    return result


def _strength(model: SRCNN) -> torch.Tensor:
    """Return, for each feature map of the first layer, what even areas send through it."""
    grey = torch.tensor([0.2, 0.5, 0.8])
    conv = model.conv1
    bias = conv.get_parameter("bias").detach()
    answer = conv.weight.detach().sum((1, 2, 3))[:, None] * grey + bias[:, None]
    weight = model.conv2.weight.detach().square().sum((0, 2, 3))
    return answer.relu().square().mean(1) * weight


def _part(
    conv: nn.Conv2d,
    outputs: torch.Tensor | slice = slice(None),
    inputs: torch.Tensor | slice = slice(None),
) -> nn.Conv2d:
    """Return the convolution restricted to some of its channels."""
    weight = conv.weight.detach()[outputs][:, inputs]
    bias = conv.get_parameter("bias").detach()[outputs]
    part = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2])
    part.load_state_dict({"weight": weight, "bias": bias})
    return part


class ChannelsLast(nn.Module):
    """A convolution without padding, in the layout that is fastest on a CPU."""

    kernels: torch.Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.bias = conv.get_parameter("bias")
        kernels = self._kernels(conv.weight.detach())
        self.register_buffer("kernels", kernels.contiguous(memory_format=torch.channels_last))

    def _kernels(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.kernels, self.bias)


class RowsAsInputs(ChannelsLast):
    """A convolution with one input channel, computed with one channel per kernel row.

    A single input channel leaves most of a vector's lanes idle. Here each row of the kernel sees a
    channel of its own: the picture, moved by that row.
    """

    def _kernels(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved = x[0, 0].unfold(0, self.kernels.shape[1], 1)
        return super().forward(_image(moved.contiguous()))


class RowsAsOutputs(ChannelsLast):
    """A convolution with one output channel, computed with one channel per kernel row.

    What they answer is added up, each moved by its row.
    """

    def _kernels(self, weight: torch.Tensor) -> torch.Tensor:
        idle = -weight.shape[2] % LANES
        return functional.pad(weight[0].transpose(0, 1).unsqueeze(2), (0,) * 7 + (idle,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = self.kernels.shape[3]
        rows = functional.conv2d(x, self.kernels)[0]
        height = rows.shape[1] - size + 1
        total = rows[0, :height] + self.bias
        for row in range(1, size):
            total += rows[row, row : row + height]
        return total[None, None]


class RowsAsPolynomials(ChannelsLast):
    """A 5×5 convolution by 8 products where the plain one takes 20.

    Down a column, 4 results of 5 taps are the transpose of a product of two polynomials, with 4 and
    with 5 coefficients, which 8 values of each determine (Toom, 1963; Cook, 1966; for convolutions
    Winograd, 1980; Lavin & Gray, 2016, arXiv:1509.09308). Here such a value is a row of all
    channels, and such a product a convolution with a kernel of one row.
    """

    before: torch.Tensor
    after: torch.Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self.register_buffer("before", _values(len(POINTS) + 1).inverse().T.float())
        self.register_buffer("after", _values(RESULTS).T.float())

    def _kernels(self, weight: torch.Tensor) -> torch.Tensor:
        values = torch.einsum("pr,oirc->poic", _values(TAPS), weight.double())
        return values.float().flatten(0, 1).unsqueeze(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, overlap = x[0].permute(1, 2, 0), TAPS - 1
        height, width = len(rows) - overlap, rows.shape[1] - overlap
        result = x.new_empty(height, width, len(self.bias))
        for top in range(0, height, STRIP):
            strip = rows[top : top + STRIP + overlap]
            missing = -(len(strip) - overlap) % RESULTS
            if missing:
                strip = functional.pad(strip, (0, 0, 0, 0, 0, missing))
            result[top : top + STRIP] = self._convolve(strip)[: height - top]
        return _image(result.add_(self.bias))

    def _convolve(self, rows: torch.Tensor) -> torch.Tensor:
        """Take H×W×C, H a multiple of 4; return (H−4)×(W−4)×C′, without the bias."""
        points, blocks = len(self.before), len(rows) // RESULTS - 1
        flat, width = rows.flatten(1), rows.shape[1] - TAPS + 1
        values = rows.new_empty(points, blocks, *rows.shape[1:])
        for block in range(blocks):
            taken = flat[RESULTS * block : RESULTS * block + points]
            torch.mm(self.before, taken, out=values[:, block].flatten(1))
        products = rows.new_empty(blocks, points, width, len(self.bias))
        for point, kernel in enumerate(self.kernels.chunk(points)):
            product = functional.conv2d(_image(values[point]), kernel)
            products[:, point] = product[0].permute(1, 2, 0)
        after = self.after.expand(blocks, -1, -1)
        return torch.bmm(after, products.flatten(2)).view(-1, width, len(self.bias))


def _values(count: int) -> torch.Tensor:
    """Return the matrix that takes a polynomial's `count` coefficients to its values."""
    powers = torch.tensor(POINTS, dtype=torch.float64)[:, None] ** torch.arange(count)
    return torch.cat([powers, torch.eye(count, dtype=torch.float64)[-1:]])


def _image(rows: torch.Tensor) -> torch.Tensor:
    """Return H×W×C as 1×C×H×W, in the same memory."""
    return rows.permute(2, 0, 1).unsqueeze(0)
