"""Both READMEs: what they name exists, and they say the same."""

import ast
import re
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from commands import ROOT, run

from ascend.versions import RELEASES, order

ENGLISH, CHINESE = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md"))
STAGES = ("train.py", "prepare.py", "evaluate.py", "upscale.py", "export.py")
SCRIPTS = [f"test/{path.name}" for path in sorted((ROOT / "test").glob("train_*.sh"))]
ENTRIES = ["modelarts_entry_acc.py", "modelarts_entry_perf.py"]
ELSEWHERE = {"set_env.sh", "scripts/build.sh"}  # files of CANN and of Ascend's apex
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
both = pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])


@cache
def options_of(program: str) -> frozenset[str]:
    """Return the options that the help of a program lists, each at the start of a line."""
    command = [sys.executable if program.endswith(".py") else "bash", ROOT / program, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = re.findall(r"^  (?:-\w, )?--.*", result.stdout, re.MULTILINE)
    columns = [re.split(r"\s{2,}", line.strip())[0] for line in lines]  # without what they mean
    return frozenset(option for column in columns for option in OPTION.findall(column))


def inline_code(text: str) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text))


def commands(text: str) -> list[str]:
    """Return the command lines of the code blocks without comments, and those inside tables."""
    blocks = "".join(code for language, code in FENCE.findall(text) if language == "bash")
    lines = [line.partition("  #")[0].strip() for line in blocks.splitlines()]
    tables = [code for code in inline_code(text) if re.match(r"(python|bash|torchrun|make) ", code)]
    return [line for line in (*lines, *tables) if line and not line.startswith("#")]


def section(heading: str) -> str:
    """Return what stands under a heading of the English README, up to the next."""
    return re.split(r"^#+ ", ENGLISH.split(f"\n### {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def listed(heading: str) -> set[str]:
    """Return the options in the first column of a section's table."""
    rows = [line for line in section(heading).splitlines() if line.startswith("| `--")]
    return {option for row in rows for option in OPTION.findall(row.split("|")[1])}


@both
def test_each_command_names_a_program_and_options_that_it_has(text: str) -> None:
    checked = 0
    for line in commands(text):
        words = line.split()
        ours = [word for word in words if word in (*STAGES, *SCRIPTS, *ENTRIES)]
        if not ours and re.search(r"\bpython [\w/]+\.py|bash test/", line):
            pytest.fail(f"no such program: {line}")
        if not ours:
            continue
        given, _, passed_on = line.partition(ours[0])[2].partition(" -- ")
        assert set(OPTION.findall(given)) <= options_of(ours[0]), line
        assert set(OPTION.findall(passed_on)) <= options_of("train.py"), line
        checked += 1
    assert checked > 20


@both
def test_each_option_in_the_text_is_one_of_some_program(text: str) -> None:
    known = set().union(*map(options_of, (*STAGES, *SCRIPTS, *ENTRIES)))
    foreign = {"--soc_version", "--name"}  # ATC's, and the form `--name=value`
    named = {option for code in inline_code(text) for option in OPTION.findall(code)}
    named -= {"--nproc_per_node", *foreign}
    assert named <= known


@pytest.mark.parametrize("stage", ["train.py", "prepare.py", "evaluate.py"])
def test_the_table_lists_every_option(stage: str) -> None:
    assert set(OPTION.findall(section(stage))) == options_of(stage) - {"--help"}


def test_the_shared_table_lists_every_option_of_both() -> None:
    both_stages = options_of("upscale.py") | options_of("export.py")
    assert listed("upscale.py and export.py") == both_stages - {"--help"}


def test_the_table_of_the_scripts_lists_every_option() -> None:
    own = set().union(*map(options_of, SCRIPTS)) - {"--help"}
    assert listed("The scripts") == own


def test_defaults_of_train() -> None:
    names = ("scale", "seed", "save-every", "num-workers", "memory-share", "loss-scale")
    shown = " ".join(run("train.py", "--help").stdout.split())
    for name in names:
        row = next(line for line in ENGLISH.splitlines() if line.startswith(f"| `--{name}` |"))
        default = row.split("|")[2].strip()
        own_help = shown.rsplit(f" --{name} ", 1)[1]
        assert re.search(r"\(default: ([^)]*)\)", own_help)[1] == default


@both
def test_each_file_and_folder_exists(text: str) -> None:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = [code for code in inline_code(text) if re.fullmatch(r"[\w./-]+", code)]
    files = [p for p in paths if re.search(r"\.(py|sh|md|txt|toml|sha256)$|^Makefile$", p)]
    produced = ("outputs", "logs", "x3", "ckpt", "dataset", "report/index.html", "0_node1")
    folders = [
        p for p in paths if p.endswith("/") and not p.startswith(produced)
        and not any(fnmatch(p.strip("/"), pattern) or p.startswith(f"{pattern}/")
                    for pattern in ignored)
    ]  # fmt: skip
    programs = [w for line in commands(text) for w in line.split() if w.endswith((".py", ".sh"))]
    requirements = re.findall(r"-r (\S+)", "\n".join(commands(text)))
    named = {*links, *files, *folders, *programs, *requirements}
    named = {name for name in named if not name.endswith(tuple(ELSEWHERE))}
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@both
def test_links_inside_the_page_lead_to_headings(text: str) -> None:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= slugs


def test_sections_that_messages_point_to_exist() -> None:
    sources = "".join(
        path.read_text("utf-8")
        for folder in (ROOT, ROOT / "runtime")
        for path in folder.glob("*.py")
    )
    sections = set(re.findall(r"README\.md, ([A-Z]\w+(?: NPU)?)", sources))
    assert {"Ascend NPU", "Data", "Troubleshooting"} <= sections
    headings = set(re.findall(r"^#+ (.+)$", ENGLISH, re.MULTILINE))
    assert sections <= headings


def test_messages_that_troubleshooting_quotes_are_ours() -> None:
    table = ENGLISH.split("\n## Troubleshooting\n")[1].split("\n## ")[0]
    quotes = [
        code
        for row in table.splitlines()[3:]
        for code in re.findall(r"`([^`]+)`", row.split("|")[1])
        if " " in code and "torch_npu`" not in code
    ]
    files = [*ROOT.glob("*.py"), *(ROOT / "runtime").glob("*.py"), *(ROOT / "imaging").glob("*.py")]
    ours = "".join(_strings(path) for path in files) + (ROOT / "Makefile").read_text()
    torch_says = ("Failed to load the backend", "libhccl.so", "import torch")
    quotes = [quote for quote in quotes if not quote.startswith(torch_says)]
    assert len(quotes) >= 5
    for quote in quotes:
        start = quote.removesuffix(" …").replace("the loss is nan", "the loss is ")
        assert start in ours, quote


def _strings(path: Path) -> str:
    """Return the texts of a source, implicit concatenation and f-strings resolved."""
    tree = ast.parse(path.read_text("utf-8"))
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\n".join(node.value for node in constants if isinstance(node.value, str))


def test_versions_are_those_that_check_knows() -> None:
    rows = re.findall(r"^\| (\d\S+) \| (2\..+) \|$", ENGLISH, re.MULTILINE)
    told = {cann: set(versions.split(", ")) for cann, versions in rows}
    known = {
        release.cann: {v for v in release.torch_npu if order(v) >= order("2.3")}
        for release in RELEASES
    }
    assert told == known


def test_both_languages_have_the_same_commands() -> None:
    assert commands(ENGLISH) == commands(CHINESE)
    assert FENCE.findall(ENGLISH) == FENCE.findall(CHINESE)


def test_both_languages_have_the_same_figures_links_and_code() -> None:
    for pattern in (r"\d+(?:[.,]\d+)*", r"https?://[^)\s]+", r"`[^`\n]+`", r"@@[^@]+@@"):
        english, chinese = (
            Counter(re.findall(pattern, FENCE.sub("", text))) for text in (ENGLISH, CHINESE)
        )
        assert english == chinese


def test_both_languages_have_the_same_shape() -> None:
    for pattern in (r"^#+ ", r"^\|", r"^- ", r"^!\["):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (ENGLISH, CHINESE)]
        assert counts[0] == counts[1], pattern


@both
def test_no_figure_is_left_to_be_measured(text: str) -> None:
    assert re.findall(r"@@.*?@@", text) == []
