"""Write the mean of weights that went apart from the same start.

    python benchmarks/mean_weights.py polished.pth taught_anew.pth --output mean.pth

Each of them misses the best weights in its own direction, a mean misses them by less: a model soup
(Wortsman et al., 2022, arXiv:2203.05482). Weights that were trained from different starts have
nothing in common that a mean would keep.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from inference.weights import load_weights
from runtime.errors import UserError, run_main
from runtime.files import write_bytes
from runtime.options import Parser
from training.checkpoint import pack_weights


def main(argv: Sequence[str] | None = None) -> None:
    """Write the mean of the files that are named."""
    parser = Parser(__doc__)
    parser.add_argument("weights", nargs="+", type=Path, help="state dicts, which count alike")
    parser.add_argument("--output", type=Path, required=True, help="state dict to write")
    args = parser.parse_args(argv)
    states = [load_weights(path).state_dict() for path in args.weights]
    shapes = [{name: weight.shape for name, weight in state.items()} for state in states]
    for path, other in zip(args.weights, shapes, strict=True):
        if other != shapes[0]:
            raise UserError(f"{path} is of another network than {args.weights[0]}")
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    write_bytes(args.output, pack_weights(mean))


if __name__ == "__main__":
    sys.exit(run_main(main))
