"""`make test-versions`: what its table says of legs that pass, fail or cannot be prepared."""

from pathlib import Path
from types import ModuleType

import pytest
from commands import ROOT

PASSED = '<testsuite><testcase name="test_fine"/></testsuite>'
FAILED = PASSED.replace("/></", '/><testcase name="test_bad"><failure/></testcase></')


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command with three legs, which writes below tmp_path and is asked for all of them."""
    monkeypatch.syspath_prepend(ROOT / "test" / "versions")
    import run  # noqa: PLC0415 - found there only
    from legs import Leg  # noqa: PLC0415

    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "DOCUMENT", tmp_path / "versions.md")
    monkeypatch.setattr(run, "LEGS", tuple(Leg("3.10", f"torch==2.{n}", None, "newest")
                                           for n in range(3)))  # fmt: skip
    monkeypatch.setattr("sys.argv", ["run.py"])
    return run


def environments(run: ModuleType, results: list[tuple[str, int]]) -> type:
    """Stand-ins for installed legs: each takes the next (report or what is wrong, exit status)."""

    class Environment:
        def __init__(self, leg: object) -> None:
            self.versions = {"python": "3.10.1", "torch": leg.torch[7:], "numpy": "1.26"}
            self.report, self.status = results.pop(0)

        def __enter__(self) -> "Environment":
            if self.report == "unprepared":
                raise run.Unprepared("uv: not installed")
            return self

        def __exit__(self, *_: object) -> None: ...

        def run_tests(self, _: tuple, report: Path, log: Path) -> int:
            log.write_text("collected\nINTERNALERROR> out of memory\n")
            if self.report:
                report.write_text(self.report)
            return self.status

    return Environment


def rows(text: str) -> list[list[str]]:
    """Return the table's rows, without the number of each leg."""
    return [line.strip("| ").split(" | ")[1:] for line in text.splitlines() if line[2:3].isdigit()]


def test_all_passed(
    versions: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(versions, "Environment", environments(versions, [(PASSED, 0)] * 3))
    assert versions.main() == 0
    written = versions.DOCUMENT.read_text(encoding="utf-8")
    wanted = [["3.10.1", f"2.{n}", "–", "1.26", "newest", "1 passed", "–"] for n in range(3)]
    assert [row[:-1] for row in rows(written)] == wanted
    assert rows(written) == rows(capsys.readouterr().out)


FAILURES = {
    "a test": ((FAILED, 1), "**1 failed**, 1 passed: `test_bad`"),
    "pytest": (("", 3), "no tests ran: INTERNALERROR> out of memory"),
    "nothing found": (("<testsuite/>", 5), "**exit status 5**, 0 passed"),
    "after the tests": ((PASSED, 1), "**exit status 1**, 1 passed"),
    "no environment": (("unprepared", 0), "not run: uv: not installed"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_leg_that_fails_is_a_row_that_says_so(
    versions: ModuleType, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    result, said = FAILURES[case]
    results = [(PASSED, 0), result, (PASSED, 0)]
    monkeypatch.setattr(versions, "Environment", environments(versions, results))
    assert versions.main() == 1
    found = [row[5] for row in rows(versions.DOCUMENT.read_text(encoding="utf-8"))]
    assert found == ["1 passed", said, "1 passed"]


def test_legs_that_are_left_out_keep_their_rows(
    versions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcomes(words: list[str], results: list[tuple[str, int]]) -> list[str]:
        monkeypatch.setattr("sys.argv", ["run.py", *words])
        monkeypatch.setattr(versions, "Environment", environments(versions, results))
        versions.main()
        return [row[5] for row in rows(versions.DOCUMENT.read_text(encoding="utf-8"))]

    assert outcomes(["1"], [(PASSED, 0)]) == ["not run", "1 passed", "not run"]
    failed = "**1 failed**, 1 passed: `test_bad`"
    assert outcomes(["2"], [(FAILED, 1)]) == ["not run", "1 passed", failed]
    assert outcomes(["0", "2"], [(PASSED, 0)] * 2) == ["1 passed"] * 3
    another = versions.LEGS[1].__class__("3.13", "torch==2.1", None, "newest")
    monkeypatch.setattr(versions, "LEGS", (versions.LEGS[0], another, versions.LEGS[2]))
    assert outcomes(["0"], [(PASSED, 0)]) == ["1 passed", "not run", "1 passed"]
