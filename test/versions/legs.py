"""The combinations of versions that ``make test-versions`` tries, and what each has to pass."""

from dataclasses import dataclass

IN_PROCESS = (
    *("test/unit", "-m", "not slow and not command"),
    *("--ignore=test/unit/test_readme.py", "--ignore=test/unit/test_pages.py"),
)
"""What ``make check`` runs, but the tests of documents, as arguments of pytest."""

ON_THE_NPU = (
    "test/npu/test_matrix.py",
    *(
        f"test/npu/test_product.py::{name}"
        for name in (
            "test_the_check_takes_a_step_with_apex[apex-O2]",
            "test_fp32_on_the_card_is_fp32_on_the_cpu",
            "test_half_precision_is_close_to_fp32[apex-O2]",
            "test_half_precision_is_close_to_fp32[fp16]",
            "test_resuming_on_the_card_is_exact[with master weights]",
            "test_eight_card_script_with_two[DistributedDataParallel]",
        )
    ),
)
"""On the simulated NPU: each recipe in each precision, a check, figures, resume, two cards."""


@dataclass(frozen=True)
class Leg:
    """One combination.

    ``torch`` is a requirement as pip takes it, and has to go with ``torch_npu``; where that is
    None, only the tests without an NPU run. ``packages`` says which release of every other
    package: "lowest" that requirements-dev.txt allows, or "newest" for this Python and torch.
    ``cann`` is the version that the simulated CANN has.
    """

    python: str
    torch: str
    torch_npu: str | None
    packages: str
    cann: str = "9.0.0"

    def __str__(self) -> str:
        npu = f", torch_npu {self.torch_npu}" if self.torch_npu else ""
        return f"Python {self.python}, {self.torch}{npu}, {self.packages} packages"


LEGS = (
    Leg("3.10", "torch==2.1.0", "2.1.0.post17", "lowest", cann="8.3.RC1"),
    Leg("3.10", "torch==2.3.0", None, "lowest"),
    Leg("3.11", "torch==2.6.0", "2.6.0.post5", "newest"),
    Leg("3.12", "torch==2.7.1", "2.7.1.post11", "newest"),
    Leg("3.13", "torch==2.9.0", "2.9.0.post9", "newest"),
    Leg("3.11", "torch==2.13.0", "2.13.0", "newest"),
    Leg("3.13", "torch", None, "newest"),
    Leg("3.14", "torch", None, "newest"),
)
