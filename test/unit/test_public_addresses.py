"""Every public address in code and configuration stands in public_address_statement.md."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(
    r"\b(?:(?:https?|ftp)://[\w.-]+|[\w-]+(?:\.[\w-]+)*\.(?:com|org|io|cn|net)(?=/))[\w./-]*"
)
OURS = re.compile(r"https?://(?:127\.0\.0\.1|localhost)\b")
NOT_CODE = ("test/", "docs/", "weights/", "constraints.txt", "LICENSE")


def addresses() -> set[tuple[str, str]]:
    """Return file and address of each, outside of tests, pages of text and the licence."""
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = set()
    for name in listing.stdout.splitlines():
        if not name.startswith(NOT_CODE) and not name.endswith(".md") and (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8", errors="ignore")
            found |= {(name, a) for a in ADDRESS.findall(text) if not OURS.match(a)}
    return found


def test_each_address_is_stated_and_each_statement_is_true() -> None:
    text = (ROOT / "public_address_statement.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    stated = {(row[2], row[3]) for row in rows if len(row) == 5}
    assert addresses() == stated - {
        ("文件名", "公网IP地址/公网URL地址/域名/邮箱地址"),
        ("---", "---"),
    }
