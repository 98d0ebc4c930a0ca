"""Every recipe in every precision on every chip: it runs, or is refused with one line."""

from itertools import product
from pathlib import Path

import pytest
from commands import ROOT
from simulator import Simulator

RECIPES = ("reference", "fast", "polish")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "apex-O1", "apex-O2")
SHORT = ["--scale=3", "--batch-size=8", "--num-epochs=1", "--num-steps=3"]
NO_BF16, NOT_WITH_APEX = "has no bf16 units", "this recipe's optimizer does not go with apex"


def _refused(recipe: str, precision: str, soc: str) -> str:
    if precision == "bf16" and soc == "Ascend910A":
        return NO_BF16
    return NOT_WITH_APEX if precision.startswith("apex-") and recipe != "reference" else ""


def _taken(recipe: str, precision: str, soc: str) -> str:
    if precision != "auto":
        return precision
    if recipe == "reference":
        return "apex-O2"
    return "fp16" if soc == "Ascend910A" else "bf16"


@pytest.mark.parametrize("soc", ["Ascend910A", "Ascend910_9391"])  # test_product.py: A2
def test_every_recipe_in_every_precision(
    npu: Simulator, patches: Path, tmp_path: Path, soc: str
) -> None:
    for recipe, precision in product(RECIPES, PRECISIONS):
        words = [f"--data_url={patches}", f"--train_url={tmp_path / recipe / precision}", *SHORT]
        words += [f"--recipe={recipe}", f"--precision={precision}"]
        if recipe == "polish":
            words.append(f"--init-weights={ROOT / 'weights/srcnn_x3.pth'}")
        run = npu.fork(ROOT / "train.py", *words, soc=soc)
        what = f"{recipe}, {precision}, {soc}: {run.stdout}{run.stderr}"
        assert "Traceback" not in run.stderr, what
        assert "fall back to run on the CPU" not in run.stderr, what
        if refusal := _refused(recipe, precision, soc):
            lines = [line for line in run.stderr.splitlines() if refusal in line]
            assert run.returncode == 2, what
            assert len(lines) == 1, what
        else:
            assert run.returncode == 0, what
            assert f"precision: {_taken(recipe, precision, soc)} (" in run.stdout, what
            assert "best epoch: 0, psnr: " in run.stdout, what
            assert run.kernel_calls["convolution_backward.default"] >= 3 * 3, what
