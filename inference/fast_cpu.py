"""The network rewritten for a CPU that enlarges pictures: the same answers, sooner."""

import torch
from torch import nn
from torch.nn import functional

from model import SRCNN

EXACT = 16  # feature maps that stay in fp32: as many as an AVX-512 vector holds
LANES = 8  # of a CPU's vectors
RESULTS, TAPS = 4, 5  # of a product of polynomials
FINITE = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # where its values are taken, and at infinity
POINTS = len(FINITE) + 1


def for_cpu(model: SRCNN, bf16: bool) -> nn.Module:
    """Return a network that is faster on a CPU, and does not pad.

    It takes 1×1×H×W and returns what lies so far from the border that padding does not reach it:
    1×1×(H−2r)×(W−2r), where r is the network's `receptive_radius`.

    Args:
        model: on luminance.
        bf16: compute most of the second layer, which is nine tenths of all arithmetic, in
            bfloat16. On Set5 at ×3 that costs 0.0001 dB on average and 0.0004 dB at most
            (benchmarks/enlarging_speed.py --images-dir measures it).
    """
    if bf16 and model.conv1.out_channels > EXACT:
        return _MostlyBf16(model)
    return _Fp32(model)


class _Fp32(nn.Module):
    """The network in fp32, its second layer by products of polynomials where that is faster."""

    def __init__(self, model: SRCNN) -> None:
        super().__init__()
        small_products = torch.backends.mkl.is_available()  # else 1.4 µs each in place of 0.2
        polynomials = small_products and model.conv2.kernel_size == (TAPS, TAPS)
        self.first = RowsAsInputs(model.conv1)
        self.second = (AsPolynomials if polynomials else ChannelsLast)(model.conv2)
        self.last = RowsAsOutputs(model.conv3)
        self.reach = 2 * model.receptive_radius
        self.reach_of_two = self.reach - (model.conv3.kernel_size[0] - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        down, right = (-(size - self.reach_of_two) % RESULTS for size in (height, width))
        x = functional.pad(x, (0, right, 0, down))  # to whole blocks, before there are 64 maps
        y = self.last(self.second(self.first(x).relu_()).relu_())
        return y[..., : height - self.reach, : width - self.reach]


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


class AsPolynomials(nn.Module):
    """A 5×5 convolution by 64 products for 4×4 results where the plain one takes 400.

    Along a line, 4 results of 5 taps are the transpose of a product of two polynomials, with 4 and
    with 5 coefficients, which 8 values of each determine (Toom, 1963; Cook, 1966; for convolutions
    Winograd, 1980; Lavin & Gray, 2016, arXiv:1509.09308). Here that is done down the columns, then
    along the rows, and such a product is one of matrices: all channels of a value by a kernel's.

    It takes 1×C×H×W, H and W multiples of 4, and returns 1×C′×(H−4)×(W−4).
    """

    before: torch.Tensor
    after: torch.Tensor
    kernels: torch.Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.bias = conv.get_parameter("bias")
        line, after = _values(TAPS), _values(RESULTS).T
        kernels = torch.einsum("qx,py,oiyx->qpio", line, line, conv.weight.detach().double())
        after = torch.einsum("yp,xq->yxqp", after, after)
        self.register_buffer("before", _values(POINTS).inverse().T.float().contiguous())
        self.register_buffer("kernels", kernels.flatten(0, 1).float().contiguous())
        self.register_buffer("after", after.flatten(2).flatten(0, 1).float().contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs, outputs, seen = x.shape[1], len(self.bias), x.shape[3]
        down, across = ((size - TAPS + 1) // RESULTS for size in x.shape[2:])
        result = x.new_empty(down, RESULTS, across, RESULTS, outputs)
        # A row of blocks at a time, as all values would not fit into the cache.
        columns = x.new_empty(seen, POINTS, inputs)
        values = x.new_empty(across, POINTS, POINTS * inputs)
        products = x.new_empty(POINTS * POINTS, across, outputs)
        blocks = x.new_empty(across, RESULTS * RESULTS, outputs)
        # All views are taken here: each call, that of a view too, may wait for another thread's.
        rows = x[0].permute(1, 2, 0).unfold(0, POINTS, RESULTS).transpose(2, 3)
        windows = columns.flatten(1).unfold(0, POINTS, RESULTS).transpose(1, 2)
        by_value = values.view(across, POINTS * POINTS, inputs).transpose(0, 1)
        by_block = products.transpose(0, 1)
        by_row = blocks.view(across, RESULTS, RESULTS, outputs).transpose(0, 1)
        down_columns, along_rows = (self.before.expand(n, -1, -1) for n in (seen, across))
        after = self.after.expand(across, -1, -1)
        for taken, part in zip(rows.unbind(), result.unbind(), strict=True):
            torch.bmm(down_columns, taken, out=columns)  # values of 8 rows
            torch.bmm(along_rows, windows, out=values)  # and of 8 columns, 4 further each time
            torch.bmm(by_value, self.kernels, out=products)
            torch.bmm(after, by_block, out=blocks)  # 64 products to 4×4 results
            torch.add(by_row, self.bias, out=part)
        return _image(result.view(down * RESULTS, across * RESULTS, outputs))


def _values(count: int) -> torch.Tensor:
    """Return the matrix that takes a polynomial's `count` coefficients to its values."""
    powers = torch.tensor(FINITE, dtype=torch.float64)[:, None] ** torch.arange(count)
    return torch.cat([powers, torch.eye(count, dtype=torch.float64)[-1:]])


def _image(rows: torch.Tensor) -> torch.Tensor:
    """Return H×W×C as 1×C×H×W, in the same memory."""
    return rows.permute(2, 0, 1).unsqueeze(0)
