"""Undoes after each check what apex does to the whole process."""

import sys
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

_CHANGED = (torch, functional, torch.Tensor, torch.nn.Module)


@pytest.fixture(autouse=True)
def _apex_ends_with_the_check() -> Iterator[None]:
    """Take O1's casts and the changed ``Module.zero_grad`` back."""
    before = [dict(vars(owner)) for owner in _CHANGED]
    yield
    for owner, members in zip(_CHANGED, before, strict=True):
        for name, value in list(vars(owner).items()):
            if name not in members and isinstance(owner, type):
                delattr(owner, name)
            elif name in members and members[name] is not value:
                setattr(owner, name, members[name])
    if "apex" in sys.modules:
        vars(sys.modules["apex"].amp._amp_state).pop("handle", None)
