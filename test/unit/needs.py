"""What tests need that is not part of the repository."""

import os
from pathlib import Path
from typing import NoReturn

import pytest
from commands import ROOT


def lacking(what: str) -> NoReturn:
    """Skip the test; with CI=true fail it, so that nothing goes untested there unseen."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {what}", pytrace=False)
    pytest.skip(f"needs {what}")


def public_images(beside: str, downloaded: str, count: int) -> Path:
    """Find a folder of public images: beside the repository, or where `make train` puts it."""
    for folder in (ROOT.parent / "shared/data" / beside, ROOT / "dataset/images" / downloaded):
        if len(list(folder.glob("*.bmp"))) == count:
            return folder
    lacking("T91 and Set5: .venv/bin/python prepare.py --data-path dataset --download")
