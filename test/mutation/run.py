"""Put small faults into the product, one by one, and count those that the tests notice.

    make mutation
    make mutation MODULES="training/crops.py imaging/metrics.py" MUTANTS=100

mutmut makes the faults ("mutants") and runs, for each, the in-process tests that reach its
function. Of each module a fixed draw of mutants is tried. Texts with a blank in them, as messages
to people, are left alone. A run goes on where an earlier one ended, and tries survivors again, as
tests may have come; a function that changed is tried anew.
Leaves each survivor's diff in build/survivors.diff, and the table in docs/testing.md.
"""

import argparse
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import libcst
import mutmut.__main__
from mutmut.__main__ import create_mutants
from mutmut.mutation import mutators
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, walk_mutatable_files

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "testing.md"
SURVIVORS = ROOT / "build" / "survivors.diff"
TABLE = "| module | mutants | tried | noticed | share |"
UNNOTICED = ("survived", "no tests")
UNTRIED = ("not checked", "check was interrupted by user", "skipped")
IMAGES = ROOT.parent / "shared"


def main() -> int:
    """Try the mutants that were not tried yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="files to put faults into (default: all)")
    parser.add_argument("--mutants", type=int, default=20, help="at most, of a module (20)")
    args = parser.parse_args()
    os.chdir(ROOT)
    Path("mutants").mkdir(exist_ok=True)
    if IMAGES.is_dir() and not Path("shared").exists():
        Path("shared").symlink_to(IMAGES)  # T91 and Set5, for tests that look beside mutants/
    leave_messages_alone()
    run_the_quickest_tests_first()
    for path in Path("mutants").rglob("*"):  # pages and the like, which mutmut copies once only
        if path.is_file() and path.suffix in {".css", ".html", ".js", ".sha256"}:
            path.unlink()
    copy_src_dir()
    copy_also_copy_files()
    create_mutants(os.cpu_count() or 1)
    chosen = [
        path for path in walk_mutatable_files() if str(path) in args.modules or not args.modules
    ]
    drawn = {path: draw(path, args.mutants) for path in chosen}
    again = (*UNTRIED, *UNNOTICED)
    untried = [
        name
        for path, names in drawn.items()
        for name, word in statuses(path, names).items()
        if word in again
    ]
    if untried:
        mutmut.__main__._run(untried, None)
    SURVIVORS.parent.mkdir(exist_ok=True)
    SURVIVORS.write_text("\n".join(survivors(drawn)), encoding="utf-8")
    write_table(drawn)
    return 0


def leave_messages_alone() -> None:
    """Of a text, let mutmut make one mutant, and none of a sentence."""
    every = mutators.operator_string

    def operator_string(node: libcst.BaseString) -> Iterator[libcst.BaseString]:
        if isinstance(node, libcst.SimpleString) and " " not in node.value:
            yield from list(every(node))[:1]

    operators = mutators.mutation_operators
    operators[:] = [(kind, operator_string if each is every else each) for kind, each in operators]


def run_the_quickest_tests_first() -> None:
    """Let mutmut, which stops at the first test that fails, begin with the quickest."""
    collect = mutmut.__main__.collect_or_load_stats

    def collect_and_sort(*args, **options) -> None:
        collect(*args, **options)
        tests_of, seconds = state().tests_by_mangled_function_name, state().duration_by_test
        for function, tests in tests_of.items():
            tests_of[function] = sorted(tests, key=lambda test: seconds.get(test, 0))

    mutmut.__main__.collect_or_load_stats = collect_and_sort


def draw(path: Path, most: int) -> list[str]:
    """Return the mutants of a module that are tried: the same ones in each run."""
    names = sorted(results(path))
    return names if len(names) <= most else random.Random(str(path)).sample(names, most)


def results(path: Path) -> dict[str, int | None]:
    """Return the exit status of the tests by mutant; None where they have not run."""
    data = SourceFileMutationData(path=path)
    data.load()
    return data.exit_code_by_key


def statuses(path: Path, names: list[str]) -> dict[str, str]:
    """Return mutmut's words for what became of mutants of a module."""
    codes = results(path)
    return {name: status_by_exit_code[codes[name]] for name in names}


def survivors(drawn: dict[Path, list[str]]) -> Iterator[str]:
    """Yield the diff of each mutant that no test noticed."""
    for path, names in drawn.items():
        for name, word in statuses(path, names).items():
            if word in UNNOTICED:
                yield f"# {name}: {word}\n{get_diff_for_mutant(name, path=path)}"


def write_table(drawn: dict[Path, list[str]]) -> None:
    """Put the rows of the modules that were tried into docs/testing.md, and leave the others."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(TABLE)
    body, _, after = rest.partition("\n\n")
    lines = [line for line in body.splitlines() if line.startswith("| `")]
    rows = {line.split(" | ")[0].strip("| `"): line for line in lines}
    for path, names in drawn.items():
        if names:
            found = Counter(statuses(path, names).values())
            tried = len(names) - sum(found[word] for word in UNTRIED)
            noticed = tried - sum(found[word] for word in UNNOTICED)
            share = f"{100 * noticed / tried:.0f} %" if tried else "–"
            of = len(results(path))
            rows[str(path)] = f"| `{path}` | {of} | {tried} | {noticed} | {share} |"
    table = [TABLE, "| --- | --- | --- | --- | --- |", *(rows[path] for path in sorted(rows))]
    DOCUMENT.write_text(before + "\n".join(table) + "\n\n" + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
