"""Runs the tests with older and newer releases of Python, torch, torch_npu and the rest.

One combination after another is installed below build/versions/, tested and removed again. The
result is printed and written to docs/versions.md; the exit status is 1 where something failed.
"""

import argparse
import datetime
import platform
import shutil
import sys
import xml.etree.ElementTree
from collections.abc import Iterable
from pathlib import Path

from environment import FOLDER, ROOT, Environment, Unprepared
from legs import IN_PROCESS, LEGS, ON_THE_NPU

DOCUMENT = ROOT / "docs" / "versions.md"
HEAD = ("leg", "Python", "torch", "torch_npu", "numpy", "other packages", "in-process tests",
        "NPU tests", "run on")  # fmt: skip
ABOUT = """# Versions

`make test-versions` writes this page: what each combination of Python, PyTorch, torch_npu and
packages passed when it ran last, on {machine}. Each is an environment of its own, installed, tested
and removed. What the table does not show is not claimed.

{table}

- Other packages: the lowest or the newest that `requirements-dev.txt` allows.
- In-process tests: those of `make check` and those on T91 and Set5, but those of the documents.
- NPU tests: the real torch_npu over a simulated driver (`test/npu/README.md`), not a card. They are
  {npu_tests}.
- `make test-versions LEGS="0 2"` runs these legs alone, and leaves the rows of the others.
- A CUDA build of torch runs here over stubs of CUDA's libraries: its CPU part is what is tested.
"""


def main() -> int:
    """Run the chosen legs; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "numbers",
        nargs="*",
        type=leg_number,
        metavar="N",
        help="run these legs only; the others keep their rows in docs/versions.md:\n"
        + "\n".join(f"{n}  {leg}" for n, leg in enumerate(LEGS)),
    )
    numbers = parser.parse_args().numbers or range(len(LEGS))
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [earlier_row(number) for number in range(len(LEGS))]
    fine = True
    for number in numbers:
        print(f"leg {number}: {LEGS[number]}", file=sys.stderr, flush=True)
        rows[number], passed = try_leg(number, FOLDER / f"leg-{number}")
        fine &= passed
        print(" | ".join(rows[number]), file=sys.stderr, flush=True)
        DOCUMENT.write_text(document(rows), encoding="utf-8")
    print(as_table([rows[number] for number in numbers]))
    return 0 if fine else 1


def earlier_row(number: int) -> tuple[str, ...]:
    """Return a leg's row in docs/versions.md, or one that says that it was not run."""
    new = as_row(number, {}, ["not run"] * 2, "–")
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if DOCUMENT.is_file() else ():
        old = tuple(line.strip("| ").split(" | "))
        same = len(old) == len(HEAD) and old[1].startswith(new[1])
        if same and (old[0], old[3], old[5]) == (new[0], new[3], new[5]):
            return old
    return new


def leg_number(text: str) -> int:
    """Read the number of a leg from the command line."""
    if text not in map(str, range(len(LEGS))):
        raise argparse.ArgumentTypeError(f"{text!r} is none of 0 to {len(LEGS) - 1}")
    return int(text)


def try_leg(number: int, results: Path) -> tuple[tuple[str, ...], bool]:
    """Prepare, test and remove one environment.

    Args:
        number: of the leg that is installed and tested.
        results: a folder, made anew, for the tests' reports and output.

    Returns:
        The row of the table, and whether everything passed.
    """
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    leg = LEGS[number]
    tests = {"in-process": IN_PROCESS, "npu": ON_THE_NPU if leg.torch_npu else ()}
    versions: dict[str, str] = {}
    outcomes = []
    try:
        with Environment(leg) as environment:
            versions = environment.versions
            for name, arguments in tests.items():
                if not arguments:
                    outcomes.append(("–", True))
                    continue
                report, log = results / f"{name}.xml", results / f"{name}.log"
                status = environment.run_tests(arguments, report, log)
                outcomes.append(outcome(status, report, log))
    except Unprepared as error:
        outcomes = [(f"not run: {error}", False)] * len(tests)
    today = datetime.date.today().isoformat()
    row = as_row(number, versions, [text for text, _ in outcomes], today)
    return row, all(passed for _, passed in outcomes)


def as_row(
    number: int, versions: dict[str, str], outcomes: list[str], date: str
) -> tuple[str, ...]:
    """Return a row below HEAD; without installed versions, it has those that were asked for."""
    leg = LEGS[number]
    asked = {"python": leg.python, "torch": leg.torch.rpartition("=")[2], "numpy": "?"}
    python, torch, numpy = ({**asked, **versions}[name] for name in asked)
    npu = leg.torch_npu or "–"
    return (str(number), python, torch, npu, numpy, leg.packages, *outcomes, date)


def outcome(status: int, report: Path, log: Path) -> tuple[str, bool]:
    """Say in a few words what a run of pytest found, and whether all is well.

    Args:
        status: pytest's exit status.
        report: its JUnit XML; missing where it ended early.
        log: its output.
    """
    if not report.is_file():
        lines = log.read_text(encoding="utf-8").strip().splitlines() or ["no output"]
        return f"no tests ran: {lines[-1]}", False
    cases = xml.etree.ElementTree.parse(report).findall(".//testcase")
    failed = [case for case in cases if bad(case)]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failed) - skipped
    text = f"{passed} passed" + (f", {skipped} skipped" if skipped else "")
    if failed:
        names = ", ".join(f"`{case.get('name')}`" for case in failed[:5])
        text = f"**{len(failed)} failed**, {text}: {names}{', …' if len(failed) > 5 else ''}"
    elif status or not passed:
        text = f"**exit status {status}**, {text}"
    return text, not (failed or status or not passed)


def bad(case: xml.etree.ElementTree.Element) -> bool:
    """Tell whether a test failed, or did not get as far."""
    return case.find("failure") is not None or case.find("error") is not None


def as_table(rows: Iterable[tuple[str, ...]]) -> str:
    """Lay out rows below HEAD in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(rows: list[tuple[str, ...]]) -> str:
    """Return the text of docs/versions.md."""
    names = ", ".join(f"`{test.removeprefix('test/npu/')}`" for test in ON_THE_NPU)
    machine = f"{platform.system()} {platform.machine()}"
    return ABOUT.format(machine=machine, table=as_table(rows), npu_tests=names)


if __name__ == "__main__":
    sys.exit(main())
