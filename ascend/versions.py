"""Which torch, torch_npu and CANN fit together."""

from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from ascend.installed import Finding

UNKNOWN = Version("0")  # what is no version


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


def order(version: str) -> Version:
    """Return what versions are ordered by, without what comes after a plus: 2.13.0+cpu."""
    try:
        return Version(Version(version).public)
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
    series, newest = order(cann).release[:2], order(release.newest).release[:2]
    if order(release.oldest) <= order(cann) and series <= newest:
        return Finding(False, f"{pair} work together; released for it was CANN {release.cann}")
    if series > order(RELEASES[0].newest).release[:2]:
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
        if order(version).base_version == order(torch).base_version
    ]
    if not candidates:
        return "pip install -r requirements-npu.txt"
    return f"pip install torch_npu=={max(candidates, key=lambda pair: pair[0])[1]}"
