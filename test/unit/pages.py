"""The project's pages as tests see them: commands, options, links, and the parsers behind them."""

import argparse
import contextlib
import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from commands import ROOT
from torch.distributed.run import get_args_parser

import evaluate
import export
import prepare
import upscale
from ascend import modelarts
from training import options

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("weights/*.md"),
                 *ROOT.glob("test/npu/*.md"))
}  # fmt: skip
STAGES = ("train.py", "prepare.py", "evaluate.py", "upscale.py", "export.py")
ENTRIES = ("modelarts_entry_acc.py", "modelarts_entry_perf.py")
BENCHMARKS = tuple(f"benchmarks/{path.name}" for path in sorted(ROOT.glob("benchmarks/*.py")))
SCRIPTS = tuple(f"test/{path.name}" for path in sorted((ROOT / "test").glob("train_*.sh")))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
SHELL = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python|bash|torchrun|make|pip|git|atc|\.) ")


def inline_code(text: str) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text))


def commands(text: str) -> list[str]:
    """Return the command lines of a page: those of its blocks, and those inside its sentences."""
    blocks = "".join(code for language, code in FENCE.findall(text) if language == "bash")
    return [*blocks.splitlines(), *(code for code in inline_code(text) if SHELL.match(code))]


def section(page: str, heading: str) -> str:
    """Return what stands under a heading of a page, up to the next."""
    start = re.search(rf"^#+ {re.escape(heading)}$", PAGES[page], re.MULTILINE)
    assert start, f"{page} has no heading {heading}"
    return re.split(r"^#+ ", PAGES[page][start.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a text's tables, row by row, without heads and rules."""
    lines = text.splitlines()
    bodies = [
        line
        for line, before in zip(lines[1:], lines, strict=False)
        if line.startswith("|") and before.startswith("|") and not line.startswith("| ---")
    ]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in bodies]


def slugs(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


class _Reached(Exception):
    """The program has built its parser and is about to parse."""


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """Return the very parser of one of the project's Python programs."""

    def stop(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Reached(self)

    main = importlib.import_module(program.removesuffix(".py").replace("/", ".")).main
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            main()
        except _Reached as reached:
            return reached.args[0]
    raise AssertionError(f"{program} parses no command line")


def actions_of(program: str) -> dict[str, argparse.Action]:
    """Return what each option of a program does, by all of its names."""
    actions = [action for action in parser_of(program)._actions if action.dest != "help"]
    return {name: action for action in actions for name in action.option_strings}


def parse(program: str, words: Sequence[str]) -> Any:
    """Parse a command line as the program does, checks included; exits where it does."""
    named = {option for word in words for option in OPTION.findall(word.partition("=")[0])}
    assert named <= {*actions_of(program), "--help"}, named  # argparse lets abbreviations pass
    if program == "train.py":
        return options.parse_args("", words)
    if program in ENTRIES:
        parser_of(program).parse_args(words)  # the entries let unknown options pass
        return modelarts.parse_args("full", words)
    stages = {"prepare.py": prepare, "evaluate.py": evaluate, "upscale.py": upscale,
              "export.py": export}  # fmt: skip
    if program in stages:
        return stages[program].parse_args(words)
    return parser_of(program).parse_args(words)


def script_in(line: str) -> str | None:
    """Return the shell script of ours that a command line starts."""
    return next((word for word in shlex.split(line) if word in SCRIPTS), None)


def check(line: str) -> None:
    """Parse a command line by the parser of what it starts, a shell script's own options excepted.

    Raises:
        AssertionError: there is no such program, file, option or value.
    """
    words = shlex.split(re.sub(r" [<>] \S+", "", line))  # without redirections
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    program, *rest = words
    with _exit_as_failure(line):
        if program == "python" and rest[0] != "-m":
            assert rest[0] in (*STAGES, *ENTRIES, *BENCHMARKS), line
            parse(rest[0], rest[1:])
        elif program == "python" and rest[1] == "pytest":
            assert all((ROOT / word).exists() for word in rest[2:] if "/" in word), line
        elif program == "torchrun":
            torchrun = get_args_parser().parse_args(rest)
            parse(torchrun.training_script, torchrun.training_script_args)
        elif program == "bash" and rest[0] in SCRIPTS:
            evaluates = rest[0] == "test/train_eval_1p.sh"
            theirs = rest[rest.index("--") + 1 :] if "--" in rest else []
            parse("evaluate.py" if evaluates else "train.py", ["--data-path=dataset", *theirs])
        elif program == "make":
            makefile = (ROOT / "Makefile").read_text()
            for word in rest:
                name, given, _ = word.partition("=")
                pattern = rf"^{name} [?:]?=" if given else rf"^{name}:"
                assert re.search(pattern, makefile, re.MULTILINE), line
        elif program == ".":
            assert rest == [".venv/bin/activate"] or (ROOT / rest[0]).is_file(), line
        elif program == "pip":
            files = re.findall(r"-r (\S+)", line)
            assert all((ROOT / file).is_file() for file in files), line
        else:
            foreign = ("git clone", "atc ", "bash ascend-apex/", "python -m ais_bench")
            assert line.startswith(foreign), line


@contextlib.contextmanager
def _exit_as_failure(line: str) -> Iterator[None]:
    try:
        yield
    except SystemExit as exit_:
        if exit_.code == 0:  # --help
            return
        raise AssertionError(f"{line}: exit status {exit_.code}") from None


def strings(path: Path) -> str:
    """Return the texts of a Python source, implicit concatenation and f-strings resolved."""
    import ast  # noqa: PLC0415

    tree = ast.parse(path.read_text("utf-8"))
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\n".join(node.value for node in constants if isinstance(node.value, str))
