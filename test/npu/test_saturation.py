"""Ascend 910A, where what overflows becomes the largest number: a run notices all the same."""

from pathlib import Path

import pytest
from commands import assert_one_line_error
from product import metrics, train
from simulator import Simulator

OLD = "Ascend910A"


@pytest.mark.parametrize("options", ["apex-O2", "apex-O1", "fp16", "fp32"])
def test_a_loss_scale_that_is_too_large_ends_the_run(
    npu: Simulator, patches: Path, tmp_path: Path, options: str
) -> None:
    """With advice that helps on this card, which has no fp32 convolutions."""
    command = [f"--precision={options}", "--loss-scale=1e30", "--num-epochs=10"]
    result = train(npu, patches, tmp_path, *command, soc=OLD)
    message = "numbers overflowed" if "apex" in options else "20 steps in a row were skipped"
    assert_one_line_error(result, message, "--loss-scale dynamic", status=1)
    assert "fp32" not in result.stderr.partition("error: ")[2].replace("overflowed in fp32", "")


@pytest.mark.parametrize("options", ["apex-O2", "apex-O1", "fp32", "fp16 --recipe=fast"])
def test_a_run_with_the_usual_scale_is_as_elsewhere(
    npu: Simulator, patches: Path, tmp_path: Path, options: str
) -> None:
    words = f"--precision={options} --num-steps=15".split()
    result = train(npu, patches, tmp_path, *words, soc=OLD).checked()
    if options == "fp32":
        assert "precision: fp32 (as asked, but this card computes conv" in result.stdout
    rows = metrics(tmp_path / "x3")
    assert {row["skipped_steps"] for row in rows} == {"0"}
    if len(rows) > 1:
        assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_a_dynamic_scale_reads_the_cards_flag(
    npu: Simulator, patches: Path, tmp_path: Path
) -> None:
    for precision in ("apex-O2", "fp16"):
        out = tmp_path / precision
        options = [f"--precision={precision}", "--loss-scale=dynamic", "--num-steps=15"]
        train(npu, patches, out, *options, soc=OLD).checked()
        assert 0 < int(metrics(out / "x3")[-1]["skipped_steps"]) < 12
