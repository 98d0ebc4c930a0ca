"""Which torch, torch_npu and CANN fit together."""

import re
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from ascend.installed import Finding
from runtime.torch_build import aborts

UNKNOWN = Version("0")  # what is no version
EARLY = re.compile(r"(?<=RC\d)[.-]?(alpha|beta)[.\d]*$", re.IGNORECASE)


class Release(NamedTuple):
    """Releases of torch_npu that came out for one CANN. Each is for the torch of its number."""

    cann: str
    oldest: str  # CANN that they work with, too
    newest: str
    torch_npu: tuple[str, ...]


# From torch_npu's repository, gitcode.com/Ascend/pytorch: the pairs stand in COMPATIBILITY.md, what
# else goes together in the release notes 7.2, 7.3, 26.0, 26.1 and 26.2 (docs/en/release_notes.md).
# The tags v26.0.1-pytorch2.* name the packages of 26.0.1 (version.txt), README.md its CANN; 2.9.1
# says itself that it is of v2.9.1-26.0.0. Without those for CANN 8.0.RC3 (2.1.0.post8,
# 2.3.1.post2, 2.4.0): no release notes tell what they work with. Newest CANN first.
RELEASES = (
    Release("9.2.0", "8.5.0", "9.2.0", ("2.7.1.post11", "2.9.0.post9", "2.10.0.post7",
            "2.11.0.post3", "2.12.0.post3", "2.13.0", "2.14.0")),
    Release("9.1.0", "8.5.0", "9.2.0", ("2.7.1.post8", "2.7.1.post10", "2.9.0.post6",
            "2.9.0.post8", "2.10.0.post4", "2.10.0.post6", "2.11.0", "2.11.0.post2", "2.12.0",
            "2.12.0.post2")),
    Release("9.0.0", "8.1.RC1", "9.2.0", ("2.7.1.post4", "2.7.1.post6", "2.8.0.post4",
            "2.8.0.post5", "2.9.0.post2", "2.9.0.post4", "2.9.1", "2.10.0", "2.10.0.post2")),
    Release("8.5.0", "8.0.0", "9.2.0", ("2.6.0.post5", "2.7.1.post2", "2.8.0.post2", "2.9.0")),
    Release("8.3.RC1", "8.0.RC2", "8.3.RC1", ("2.1.0.post17", "2.6.0.post3", "2.7.1", "2.8.0")),
    Release("8.2.RC1", "8.0.RC2", "8.3.RC1", ("2.1.0.post13", "2.5.1.post1", "2.6.0")),
    Release("8.1.RC1", "8.0.RC2", "8.3.RC1", ("2.1.0.post12", "2.3.1.post6", "2.4.0.post4",
            "2.5.1")),
    Release("8.0.0", "8.0.RC2", "8.3.RC1", ("2.1.0.post10", "2.3.1.post4", "2.4.0.post2")),
)  # fmt: skip


def order(version: str) -> Version:
    """Return what versions are ordered by: 2.13.0 of 2.13.0+cpu, 8.2.RC1 of 8.2.RC1.alpha003."""
    whole = EARLY.sub("", version)
    try:
        return Version(Version(whole).public)
    except InvalidVersion:
        return UNKNOWN


def fit(torch_npu: str, cann: str) -> Finding:
    """Say whether a torch_npu goes with a CANN."""
    pair = f"torch_npu {torch_npu} and CANN {cann}"
    release = find_release(torch_npu)
    if release is None:
        return Finding(False, f"{pair}: not in the table of versions known here; "
                              f"see the release notes of torch_npu")  # fmt: skip
    if order(release.cann) == order(cann):
        return Finding(False, f"{pair} were released for each other")
    if _work_together(release, cann):
        return Finding(False, f"{pair} work together; released for it was CANN {release.cann}")
    if _series(cann) > _series(RELEASES[0].newest):
        return Finding(False, f"{pair}: this CANN is newer than the versions known here")
    return Finding(True, f"{pair} do not go together: it needs CANN {release.oldest} to "
                         f"{release.newest}, best {release.cann}")  # fmt: skip


def find_release(torch_npu: str) -> Release | None:
    """Return the row of the table that holds a torch_npu."""
    for release in RELEASES:
        if any(order(version) == order(torch_npu) for version in release.torch_npu):
            return release
    return None


def suggest(torch: str, cann: str, torch_cuda: str = "") -> str:
    """Name the torch_npu for this torch: released for this CANN, else one that works with it.

    None that aborts where torch was built for CUDA.
    """
    candidates = [
        (order(release.cann) == order(cann), _work_together(release, cann), order(version))
        for release in RELEASES
        for version in release.torch_npu
        if order(version).base_version == order(torch).base_version
        and not aborts(version, torch_cuda)
    ]
    if not candidates:
        return "pip install -r requirements-npu.txt"
    return f"pip install torch_npu=={max(candidates)[-1]}"


def _work_together(release: Release, cann: str) -> bool:
    return order(release.oldest) <= order(cann) and _series(cann) <= _series(release.newest)


def _series(version: str) -> tuple[int, ...]:
    return order(version).release[:2]
