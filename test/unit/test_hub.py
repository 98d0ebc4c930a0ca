"""torch.hub.load, from a program that lies elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import HANG, ROOT

import hubconf
from inference.weights import load_weights, shipped_weights

# Without the clone on the path, as where it is not installed.
PROGRAM = """
import json, sys
from pathlib import Path
sys.path = [folder for folder in sys.path if not Path(folder or ".", "hubconf.py").is_file()]
import torch
repository, scale, out = sys.argv[1:]
model = torch.hub.load(repository, f"srcnn_x{scale}", source="local")
torch.save(model(torch.linspace(0, 1, 2 * 400).reshape(2, 1, 20, 20)), out)
untrained = torch.hub.load(repository, f"srcnn_x{scale}", source="local", pretrained=False)
same = [torch.equal(a, b) for a, b in zip(model.parameters(), untrained.parameters())]
print(json.dumps([model.training, same]))
"""


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_shipped_networks(tmp_path: Path, scale: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(scale), str(tmp_path / "y.pt")]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANG
    )
    assert result.returncode == 0, result.stderr
    training, same = json.loads(result.stdout.splitlines()[-1])
    assert not training
    assert not any(same)
    x = torch.linspace(0, 1, 2 * 400).reshape(2, 1, 20, 20)
    entries = [name for name, value in vars(hubconf).items() if callable(value) and name[0] != "_"]
    assert entries == ["srcnn_x2", "srcnn_x3", "srcnn_x4"], "what torch.hub.list shows"
    expected = load_weights(shipped_weights(scale))(x)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), expected)
