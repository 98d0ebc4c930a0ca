"""Which torch, torch_npu and CANN fit together."""

import re
from typing import NamedTuple

UNKNOWN = ((0, 0, 0), 0, 0)  # the order of what is no version
STAGES = ("a", "b", "rc", "", "post")  # of one release, in the order of time


class Release(NamedTuple):
    """Releases of torch_npu that came out for one CANN. Each is for the torch of its number."""

    cann: str
    oldest: str  # CANN that they work with, too
    newest: str
    torch_npu: tuple[str, ...]


# From the release notes 7.2, 7.3, 26.0, 26.1 and 26.2 of torch_npu (gitcode.com/Ascend/pytorch,
# docs/en/release_notes.md), newest first.
RELEASES = (
    Release("9.2.0", "8.5.0", "9.2.0", ("2.7.1.post11", "2.9.0.post9", "2.10.0.post7",
            "2.11.0.post3", "2.12.0.post3", "2.13.0", "2.14.0")),
    Release("9.1.0", "8.5.0", "9.2.0", ("2.7.1.post8", "2.9.0.post6", "2.10.0.post4", "2.11.0",
            "2.12.0")),
    Release("9.0.0", "8.1.RC1", "9.2.0", ("2.7.1.post4", "2.8.0.post4", "2.9.0.post2", "2.10.0")),
    Release("8.5.0", "8.0.0", "9.2.0", ("2.6.0.post5", "2.7.1.post2", "2.8.0.post2", "2.9.0")),
    Release("8.3.RC1", "8.0.RC2", "8.3.RC1", ("2.1.0.post17", "2.6.0.post3", "2.7.1", "2.8.0")),
)  # fmt: skip


class Finding(NamedTuple):
    """A sentence for the user; `bad` when something does not fit or is missing."""

    bad: bool
    text: str


def order(version: str) -> tuple[tuple[int, ...], int, int]:
    """Return what versions are ordered by: 2.9.0 < 2.10.0rc2 < 2.10.0 < 2.10.0.post4."""
    match = re.match(
        r"(\d+(?:\.\d+)*)(?:[.-]?(a|b|rc|post)(?:lpha|eta)?[.-]?(\d+))?", version.lower()
    )
    if match is None:
        return UNKNOWN
    numbers = [int(number) for number in match[1].split(".")]
    return (*numbers, 0, 0)[:3], STAGES.index(match[2] or ""), int(match[3] or 0)


def fit(torch_npu: str, cann: str) -> Finding:
    """Say whether a torch_npu goes with a CANN."""
    pair = f"torch_npu {torch_npu} and CANN {cann}"
    release = find_release(torch_npu)
    if release is None:
        return Finding(False, f"{pair}: not in the table of versions known here; "
                              f"see the release notes of torch_npu")  # fmt: skip
    if order(release.cann) == order(cann):
        return Finding(False, f"{pair} were released for each other")
    series, newest = order(cann)[0][:2], order(release.newest)[0][:2]
    if order(release.oldest) <= order(cann) and series <= newest:
        return Finding(False, f"{pair} work together; released for it was CANN {release.cann}")
    if series > order(RELEASES[0].newest)[0][:2]:
        return Finding(False, f"{pair}: this CANN is newer than the versions known here")
    return Finding(True, f"{pair} do not go together: it needs CANN {release.oldest} to "
                         f"{release.newest}, best {release.cann}")  # fmt: skip


def find_release(torch_npu: str) -> Release | None:
    """Return the row of the table that holds a torch_npu."""
    for release in RELEASES:
        if any(order(version) == order(torch_npu) for version in release.torch_npu):
            return release
    return None


def suggest(torch: str, cann: str) -> str:
    """Name the torch_npu for this torch: the one released for this CANN, else the newest."""
    candidates = [
        (order(release.cann) == order(cann), version)
        for release in RELEASES
        for version in release.torch_npu
        if order(version)[0] == order(torch)[0]
    ]
    if not candidates:
        return "pip install -r requirements-npu.txt"
    return f"pip install torch_npu=={max(candidates, key=lambda pair: pair[0])[1]}"
