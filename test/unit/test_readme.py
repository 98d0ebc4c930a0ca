"""Both READMEs: a newcomer reads them to the end, and they say the same."""

import re
from collections import Counter

import pytest
from commands import ROOT
from pages import CHINESE, ENGLISH, FENCE, PAGES, commands

from ascend.versions import RELEASES

README, TRANSLATION = PAGES[ENGLISH.name], PAGES[CHINESE.name]
both = pytest.mark.parametrize("text", [README, TRANSLATION], ids=["english", "chinese"])


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 230


@both
def test_every_page_is_linked(text: str) -> None:
    pages = {name for name in PAGES if name not in (ENGLISH.name, CHINESE.name)}
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)}
    assert pages - linked == set()


def test_the_chinese_page_has_the_order_of_the_modelzoo() -> None:
    sections = ["概述", "准备训练环境", "准备数据集", "开始训练", "训练结果展示", "版本说明", "FAQ",
                "公网地址说明"]  # fmt: skip
    assert re.findall(r"^## (.+)$", TRANSLATION, re.MULTILINE) == sections


@both
def test_each_result_has_its_protocol_and_bicubic_beside(text: str) -> None:
    results = re.findall(r"^\| (\w+) \| ([^|]+) \|.*\b\d\d\.\d\d\b.*$", text, re.MULTILINE)
    assert {protocol for protocol, _ in results} == {"modelzoo", "paper"}
    bicubic = [protocol for protocol, what in results if what in ("bicubic", "双三次")]
    assert bicubic == ["modelzoo", "paper"]


@both
def test_the_layout_names_every_part(text: str) -> None:
    tree = next(code for language, code in FENCE.findall(text) if language == "text")
    named = set(re.findall(r"(?<![\w/])(?:\w+\.py|\w+/)(?![\w/])", tree))
    assert {name for name in named if not (ROOT / name).exists()} == {"unit/", "npu/"}  # of test/
    parts = {path.name for path in ROOT.glob("*.py")}
    parts |= {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    assert parts <= named


def test_both_languages_have_the_same_commands() -> None:
    assert sorted(commands(README)) == sorted(commands(TRANSLATION))
    assert len(commands(README)) > 25
    blocks, translated = (
        sorted(code for language, code in FENCE.findall(text) if language == "bash")
        for text in (README, TRANSLATION)
    )
    assert blocks == translated


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d+(?:[.,]\d+)*",  # figures
        r"https?://[^)\s]+",
        r"`[^`\n]+`",
        r"\]\([^)]*\)",  # links and pictures
    ],
)
def test_both_languages_have_the_same(pattern: str) -> None:
    english, chinese = (
        Counter(link for link in re.findall(pattern, FENCE.sub("", text)) if "README" not in link)
        for text in (README, TRANSLATION)
    )
    assert english == chinese


@pytest.mark.parametrize("pattern", [r"^\|", r"^!\[", r"^```"])
def test_both_languages_have_the_same_shape(pattern: str) -> None:
    counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (README, TRANSLATION)]
    assert counts[0] == counts[1]


def test_versions_are_those_that_check_knows() -> None:
    table = re.findall(r"^\| (\d\S+) \| (2\..+?) \| (.+) \|$", PAGES["docs/npu.md"], re.MULTILINE)
    assert {cann: set(versions.split(", ")) for cann, versions, _ in table} == {
        release.cann: set(release.torch_npu) for release in RELEASES
    }
    for cann, _, cards in table:  # 910A: up to torch_npu 2.9.0 with CANN 8.5
        assert ("910A" in cards) == (int(cann.partition(".")[0]) < 9)
