"""PSNR after an epoch: of which weights, on which pictures, shared out over the processes."""

import math
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataset_files import blocks, save_images
from samples import OneOfSeveral, network
from torch import nn

from datasets import EvalDataset
from inference.last_layer import ColumnsAsChannels
from runtime.distributed import World
from training.evaluation import Evaluator, mean_psnr
from training.precision import Autocast, Precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def eval_set(tmp_path_factory: pytest.TempPathFactory) -> EvalDataset:
    """Three images, none of them square."""
    path = tmp_path_factory.mktemp("evaluation") / "Val\n_x3.h5"
    rng = np.random.default_rng(4)
    save_images(path, [blocks(rng, 20 + 3 * i, 31) for i in range(3)])
    return EvalDataset(path)


def pairs_of(eval_set: EvalDataset) -> list:
    return [(lr[None], hr[None]) for lr, hr in eval_set]


def plain_psnr(model: nn.Module, pairs: list) -> float:
    with torch.no_grad():
        errors = [(model(lr).clamp(0, 1) - hr).square().mean() for lr, hr in pairs]
    return sum(-10 * torch.log10(error).item() for error in errors) / len(pairs)


HELD_OUT = [(torch.full((2, 1, 9, 12), 0.4), torch.full((2, 1, 9, 12), 0.5))]


def test_which_weights_on_which_pictures(eval_set: EvalDataset) -> None:
    evaluator = Evaluator(eval_set, HELD_OUT, World(CPU), Precision())
    averaged, raw = network(), network()
    nn.init.constant_(raw.conv3.bias, 0.2)
    state = SimpleNamespace(weights=averaged.state_dict, master_params=raw.state_dict, ema=True)
    assert evaluator.scores(state) == pytest.approx(
        {
            "psnr": plain_psnr(averaged, pairs_of(eval_set)),
            "raw_psnr": plain_psnr(raw, pairs_of(eval_set)),
            "held_out_psnr": plain_psnr(averaged, HELD_OUT),
        },
        abs=1e-3,
    )
    state.ema = None
    assert evaluator.scores(state)["raw_psnr"] is None
    without = Evaluator(eval_set, [], World(CPU), Precision())
    assert without.scores(state)["held_out_psnr"] is None


def test_what_the_log_says_of_the_evaluation_set(eval_set: EvalDataset) -> None:
    evaluator = Evaluator(eval_set, HELD_OUT, World(CPU), Precision())
    bicubic = plain_psnr(nn.Identity(), pairs_of(eval_set))
    assert evaluator.bicubic_psnr == pytest.approx(bicubic, abs=1e-3)
    assert evaluator.name == "Val\n_x3"
    path = str(eval_set.path).replace("\n", "\\n")
    assert (
        evaluator.description == f"{path}, 3 images, bicubic {bicubic:.2f} dB (modelzoo protocol)"
    )


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_processes_share_the_pictures(eval_set: EvalDataset, size: int) -> None:
    """Each pair is one process's, whose part of the mean is that of all pairs."""
    pairs = pairs_of(eval_set)
    parts = [mean_psnr(network(), pairs, OneOfSeveral(CPU, rank, size)) for rank in range(size)]
    assert sum(parts) == pytest.approx(plain_psnr(network(), pairs), abs=1e-4)
    assert all(part == 0 for part in parts[3:])
    alone = -10 * torch.log10((network()(pairs[1][0]).clamp(0, 1) - pairs[1][1]).square().mean())
    if size > 2:
        assert parts[1] == pytest.approx(alone.item() / 3, abs=1e-4)


def test_many_patches_do_not_go_through_the_network_at_once() -> None:
    """A twentieth of a large set would take gigabytes; it is measured as one all the same."""
    rng, model, seen = torch.Generator().manual_seed(3), network(), []
    model.conv1.register_forward_hook(lambda *call: seen.append(len(call[-1])))
    lr, hr = (torch.rand(150, 1, 9, 12, generator=rng) for _ in range(2))
    hr[140:] += 1  # of the last block, which is a smaller one
    pairs = [(lr, hr), (lr[:1], hr[:1])]
    expected = plain_psnr(network(), pairs)
    assert mean_psnr(model, pairs, World(CPU)) == pytest.approx(expected, abs=1e-4)
    assert seen == [64, 64, 22, 1]


class Noting(Autocast):
    """Notes when another network than the trained one computes."""

    inside = 0

    def evaluation(self) -> AbstractContextManager:
        self.inside += 1
        return nullcontext()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("half", [False, True])
def test_half_precision_where_training_has_it_and_it_is_asked_for(
    eval_set: EvalDataset, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, half: bool
) -> None:
    """Said to autocast in so many words, as its own choice is another one on a GPU."""
    asked, autocast = [], torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda *words, **more: (asked.append(more), autocast(*words, **more))[1]
    )
    precision = Noting(CPU, dtype, 32.0)
    evaluator = Evaluator(eval_set, [], World(CPU), precision, half=half)
    seen = []
    evaluator.model.conv1.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    evaluator.psnr(network().state_dict(), evaluator.pairs)
    assert set(seen) == {dtype if half else torch.float32}
    assert precision.inside == 1
    used = dtype if half and dtype == torch.bfloat16 else None
    ours = [more for more in asked if "dtype" in more]  # torch has some inside
    assert ours == [{"dtype": used, "enabled": used is not None}]
    assert Evaluator(eval_set, [], World(CPU), precision).half is None


def test_the_network_that_is_evaluated_is_not_trained(eval_set: EvalDataset) -> None:
    """It has the form that computes best on the device."""
    evaluator = Evaluator(eval_set, [], World(CPU), Precision())
    assert isinstance(evaluator.model.conv3, ColumnsAsChannels)
    assert not evaluator.model.training
    assert not any(weight.requires_grad for weight in evaluator.model.parameters())


class Moved:
    """What a picture becomes on a device."""

    def to(self, device: torch.device) -> tuple[str, torch.device]:
        return "moved", device


def test_pictures_lie_where_training_runs(eval_set: EvalDataset) -> None:
    evaluator = Evaluator(eval_set, [(Moved(), Moved())], World(CPU), Precision())
    assert evaluator.held_out == [(("moved", CPU), ("moved", CPU))]


@pytest.mark.parametrize(
    ("step", "above", "skipped", "said"),
    [
        (1999, -1.0, 0, []),
        (2000, -1.0, 0, ["after 2,000 steps"]),
        (9000, -0.1, 7, ["overflowed: 7", "after 9,000 steps"]),
        (9000, 0.0, 0, []),
        (9000, 0.1, 1, ["overflowed: 1"]),
    ],
)
def test_what_should_not_pass_unnoticed(
    eval_set: EvalDataset, capsys: pytest.CaptureFixture[str],
    step: int, above: float, skipped: int, said: list[str],
) -> None:  # fmt: skip
    evaluator = Evaluator(eval_set, [], World(CPU), Precision())
    psnr = evaluator.bicubic_psnr + above
    evaluator.warn({"step": step, "psnr": psnr, "skipped_steps": skipped})
    output, errors = capsys.readouterr()
    assert output == ""
    lines = errors.splitlines()
    assert len(lines) == len(said)
    assert all(words in line for words, line in zip(said, lines, strict=True))
    if above < 0 and said:
        below = f"PSNR {psnr:.2f} dB is below bicubic's {evaluator.bicubic_psnr:.2f} dB"
        assert lines[-1].startswith(f"warning: {below}")


def test_nothing_is_worse_than_bicubic_that_is_exact(
    eval_set: EvalDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a picture that is black all over."""
    evaluator = Evaluator(eval_set, [], World(CPU), Precision())
    evaluator.bicubic_psnr = math.inf
    evaluator.warn({"step": 9000, "psnr": 40.0, "skipped_steps": 0})
    assert capsys.readouterr().err == ""
