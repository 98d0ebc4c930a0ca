"""Every page: what it names exists, and is as the page says."""

import re
import subprocess

import pytest
from commands import ROOT
from pages import (
    BENCHMARKS,
    ENTRIES,
    OPTION,
    PAGES,
    SCRIPTS,
    STAGES,
    actions_of,
    check,
    commands,
    inline_code,
    rows,
    script_in,
    section,
    slugs,
    strings,
)

from training.recipes import RECIPES

PRODUCT = ("training", "inference", "ascend", "runtime", "imaging", "preparing", "report", "serve")
SOURCES = [*ROOT.glob("*.py"), *(path for part in PRODUCT for path in (ROOT / part).glob("*.py"))]
TEXTS = "".join(map(strings, SOURCES)) + "".join(
    path.read_text("utf-8") for path in (ROOT / "Makefile", *ROOT.glob("test/*.sh"))
)
LISTED = "docs/options.md"
PROGRAMS = (*STAGES, *ENTRIES, *BENCHMARKS)
EXAMPLES = {  # in messages that are quoted with a value
    "the loss is nan": "the loss is ",
    "no T91_x3.h5 in": ".h5 in ",
    "no weights for x5 in weights/": "no weights for x",
}
FOREIGN = {"--soc_version", "--name", "--nproc_per_node"}  # ATC's, `--name=value`, torchrun's
each_page = pytest.mark.parametrize("page", sorted(PAGES))


def help_of(script: str) -> str:
    return subprocess.run(
        ["bash", ROOT / script, "--help"], capture_output=True, text=True, check=True
    ).stdout


def script_options() -> dict[str, set[str]]:
    """Return the options of all shell scripts with their defaults, from their help."""
    found: dict[str, set[str]] = {}
    for script in SCRIPTS:
        for line in re.findall(r"^  --.*$", help_of(script), re.MULTILINE):
            found.setdefault(OPTION.findall(line)[0], set()).update(
                re.findall(r"\(default: (?:\w+, or )?(\d+)\)", line)
            )
    return {name: defaults for name, defaults in found.items() if name != "--help"}


@each_page
def test_each_command_parses(page: str) -> None:
    for line in commands(PAGES[page]):
        check(line)


def test_commands_are_found() -> None:
    assert sum(len(commands(text)) for text in PAGES.values()) > 120


@pytest.mark.parametrize("line", sorted({c for text in PAGES.values() for c in commands(text)
                                         if script_in(c)}))  # fmt: skip
def test_each_script_takes_its_options(line: str) -> None:
    own, _, _ = line.partition(" -- ")
    result = subprocess.run(
        ["bash", "-c", f"{own} --help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@each_page
def test_each_option_in_a_sentence_is_one_of_some_program(page: str) -> None:
    known = set().union(*map(actions_of, PROGRAMS), script_options(), FOREIGN, {"--help"})
    for code in inline_code(PAGES[page]):
        program = next((p for p in PROGRAMS if re.search(rf"(?<![\w/]){p}\b", code)), None)
        allowed = {*actions_of(program), "--help"} if program and " -- " not in code else known
        assert set(OPTION.findall(code)) <= allowed, code


@pytest.mark.parametrize("program", STAGES)
def test_every_option_is_listed_with_its_default(program: str) -> None:
    actions, listed = actions_of(program), rows(section(LISTED, program))
    assert {name for cells in listed for name in OPTION.findall(cells[0])} == set(actions)
    for cells in listed:
        for name in OPTION.findall(cells[0]):
            action, default = actions[name], cells[1].strip("`")
            if action.nargs == 0:
                assert default == "off", name
            elif action.default is not None and (program, name) != ("prepare.py", "--jobs"):
                assert default.split("`")[0] == str(action.default), name


@pytest.mark.parametrize("field", ["lr", "batch_size", "num_epochs"])
def test_defaults_of_the_recipes(field: str) -> None:
    name = f"`--{field.replace('_', '-')}`"
    cell = next(cells[1] for cells in rows(section(LISTED, "train.py")) if cells[0] == name)
    values = [getattr(recipe, field) for recipe in RECIPES.values()]
    assert [float(value) for value in re.findall(r"\b\d[\de.-]*\b", cell)] == values


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("page", [LISTED, "docs/modelarts.md"])
def test_options_of_the_entries(entry: str, page: str) -> None:
    text = section(page, "ModelArts entries" if page == LISTED else "ModelArts")
    told = {
        cells[0].strip("`"): cells[1 if page == LISTED else 2].strip("`") for cells in rows(text)
    }
    actions = actions_of(entry)
    assert told == {name: action.default or "off" for name, action in actions.items()}


def test_options_of_the_scripts() -> None:
    listed = {name: cells[1] for cells in rows(section(LISTED, "The scripts"))
              for name in OPTION.findall(cells[0])}  # fmt: skip
    own = script_options()
    assert set(listed) == set(own)
    for name, defaults in own.items():
        assert set(re.findall(r"\d+", re.sub(r"`.*`", "", listed[name]))) == defaults or (
            name == "--train_steps" and listed[name] == "0"
        ), name


def test_options_of_the_benchmarks() -> None:
    listed = rows(section(LISTED, "Benchmarks"))
    assert {cells[0].strip("`"): set(OPTION.findall(cells[1])) for cells in listed} == {
        program: set(actions_of(program)) for program in BENCHMARKS
    }


def test_targets_and_variables_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    told = [code for cells in rows(section(LISTED, "make")) for code in inline_code(cells[0])]
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    settings = re.findall(r"^(\w+) \?= ?(.*)$", makefile, re.MULTILINE)
    assert sorted(told) == sorted(
        [*(f"make {target}" for target in targets), *(name for name, _ in settings)]
    )
    defaults = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(section(LISTED, "make"))}
    assert all(defaults[name] == value for name, value in settings)


def test_the_image_holds_what_it_installs_and_starts() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = re.search(r"^COPY (.*) \./$", dockerfile, re.MULTILINE)[1].split()
    installing, starting = re.search(r"^RUN (.*)\nCOPY \. \.\nCMD (.*)$", dockerfile, re.M).groups()
    assert re.findall(r"-r (\S+)", installing) == copied
    started = re.findall(r"[\w/]+\.(?:sh|py)", starting)
    assert started == ["test/env_npu.sh", "train.py"]
    assert all((ROOT / name).is_file() for name in (*copied, *started))


@each_page
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target.read_text("utf-8")), link


@each_page
def test_each_file_that_is_named_exists(page: str) -> None:
    elsewhere = {"set_env.sh", "COMPATIBILITY.md", "NpuVariables.h", "index.html"}
    tests = {path.name for path in (ROOT / "test").rglob("*.py")}
    paths = [code.partition("::")[0] for code in inline_code(PAGES[page])]
    files = {p for p in paths if re.fullmatch(r"[\w./-]+\.(py|sh|md|txt|toml|sha256|h)", p)}
    assert [
        name
        for name in files - elsewhere - tests
        if not any((folder / name).exists() for folder in (ROOT, (ROOT / page).parent))
        and not (ROOT / "test" / name).exists()
    ] == []


def test_pages_and_sections_that_messages_point_to_exist() -> None:
    told = TEXTS + (ROOT / "requirements-npu.txt").read_text()
    pointers = re.findall(r"((?:README|docs/\w+)\.md)(?:, ([A-Z]\w+(?: NPU)?))?", told)
    assert len(pointers) >= 3
    for page, heading in pointers:
        assert page in PAGES
        assert not heading or section(page, heading)


def test_messages_that_troubleshooting_quotes_are_ours() -> None:
    theirs = ("Failed to load the backend", "libhccl.so", "import torch", "Duplicated key",
              "No module named", "not implemented for DT_BFLOAT16")  # fmt: skip
    pages = ("docs/troubleshooting.md", "README.md", "README.zh-CN.md")
    quotes = {
        code
        for page in pages
        for cells in rows(PAGES[page])
        if len(cells) == 2
        for code in inline_code(cells[0])
        if " " in code and not code.startswith((*theirs, "make ", "--check", "torch_npu`"))
    }
    assert len(quotes) >= 15
    for quote in quotes:
        parts = [part.strip() for part in quote.split("…") if part.strip()]
        assert all(EXAMPLES.get(part, part) in TEXTS for part in parts), quote
