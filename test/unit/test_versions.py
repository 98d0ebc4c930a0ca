"""Which torch, torch_npu and CANN fit together."""

import pytest

from ascend.versions import RELEASES, fit, order, suggest


def test_versions_are_compared_as_versions() -> None:
    versions = ["2.10.1", "2.10.0", "2.10.0.post17", "2.9.0", "2.10.0rc2", "2.10.0.post4"]
    ordered = ["2.9.0", "2.10.0rc2", "2.10.0", "2.10.0.post4", "2.10.0.post17", "2.10.1"]
    assert sorted(versions, key=order) == ordered
    assert order("2.13.0+cpu") == order("2.13.0") == order("2.13")
    assert order("8.3.RC1") == order("8.3.0rc1") < order("8.3.0")
    assert order("8.5.0.alpha003") < order("8.5.0-beta.1") < order("8.5.0")


def test_the_table_names_each_torch_npu_once_and_in_order() -> None:
    names = [order(version) for release in RELEASES for version in release.torch_npu]
    assert len(set(names)) == len(names)
    canns = [order(release.cann) for release in RELEASES]
    assert canns == sorted(canns, reverse=True)
    for release in RELEASES:
        assert order(release.oldest) <= order(release.cann) <= order(release.newest)


# `pip index versions torch_npu`, from 2.1.0.post10 on: older ones came out for CANN 8.0.RC3.
PUBLISHED = """
2.14.0 2.13.0 2.12.0.post3 2.12.0.post2 2.12.0 2.11.0.post3 2.11.0.post2 2.11.0 2.10.0.post7
2.10.0.post6 2.10.0.post4 2.10.0.post2 2.10.0 2.9.1 2.9.0.post9 2.9.0.post8 2.9.0.post6 2.9.0.post4
2.9.0.post2 2.9.0 2.8.0.post5 2.8.0.post4 2.8.0.post2 2.8.0 2.7.1.post11 2.7.1.post10 2.7.1.post8
2.7.1.post6 2.7.1.post4 2.7.1.post2 2.7.1 2.6.0.post5 2.6.0.post3 2.6.0 2.5.1.post1 2.5.1
2.4.0.post4 2.4.0.post2 2.3.1.post6 2.3.1.post4 2.1.0.post17 2.1.0.post13 2.1.0.post12 2.1.0.post10
"""


def test_every_published_release_is_in_the_table() -> None:
    assert {v for release in RELEASES for v in release.torch_npu} == set(PUBLISHED.split())


@pytest.mark.parametrize(
    ("torch_npu", "cann", "bad", "part"),
    [
        ("2.9.0.post8", "9.1.0", False, "released for each other"),
        ("2.9.1", "9.0.0", False, "released for each other"),
        ("2.5.1", "8.3.RC1", False, "work together; released for it was CANN 8.1.RC1"),
        ("2.5.1", "8.5.0", True, "needs CANN 8.0.RC2 to 8.3.RC1, best 8.1.RC1"),
        ("2.9.0", "8.0.0", False, "work together; released for it was CANN 8.5.0"),
        ("2.13.0", "9.2.0", False, "released for each other"),
        ("2.9.0.post2", "9.0.0", False, "released for each other"),
        ("2.1.0.post17", "8.3.rc1", False, "released for each other"),
        ("2.13.0", "9.0.0", False, "work together; released for it was CANN 9.2.0"),
        ("2.13.0", "9.2.3", False, "work together"),
        ("2.13.0", "8.3.RC1", True, "needs CANN 8.5.0 to 9.2.0, best 9.2.0"),
        ("2.8.0", "9.0.0", True, "needs CANN 8.0.RC2 to 8.3.RC1"),
        ("2.8.0", "10.0.0", False, "newer than the versions known here"),
        ("2.99.0", "9.2.0", False, "not in the table"),
    ],
)
def test_pairs_of_torch_npu_and_cann(torch_npu: str, cann: str, bad: bool, part: str) -> None:
    finding = fit(torch_npu, cann)
    assert finding.bad == bad
    assert part in finding.text
    assert torch_npu in finding.text and cann in finding.text


def test_a_torch_npu_is_suggested_for_the_torch_that_is_there() -> None:
    assert suggest("2.10.0+cpu", "9.0.0") == "pip install torch_npu==2.10.0.post2"
    assert suggest("2.10.0", "8.5.0") == "pip install torch_npu==2.10.0.post7"
    assert suggest("2.7.1", "8.2.RC1") == "pip install torch_npu==2.7.1.post6"  # what works with it
    assert suggest("2.4.1", "9.0.0") == "pip install -r requirements-npu.txt"


def test_none_is_suggested_that_aborts_beside_the_torch_that_is_there() -> None:
    assert suggest("2.12.0", "9.2.0") == "pip install torch_npu==2.12.0.post3"
    assert suggest("2.12.0", "9.2.0", "13.0") == "pip install torch_npu==2.12.0.post2"
    assert suggest("2.13.0", "9.2.0", "13.0") == "pip install -r requirements-npu.txt"
