"""The command line of train.py. Imports nothing heavy, so that --help answers at once."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError
from runtime.numbers import COUNT, NATURAL, POSITIVE, SEED, number
from runtime.options import Parser, add_device, path
from training.recipes import POLISH, RECIPES

# What ModelArts adds to the command line of a job, and what it sets in its environment.
PLATFORM_OPTIONS = {"init_method", "num_gpus", "num_npus", "rank", "world_size", "local_rank"}
PLATFORM_VARIABLES = ("MODELARTS_MODEL_PATH", "MA_JOB_DIR", "MA_NUM_HOSTS", "MA_NUM_GPUS")


def loss_scale(value: str) -> float | str:
    """Parse --loss-scale."""
    try:
        return value if value == "dynamic" else POSITIVE(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor dynamic") from None


# fmt: off
def parse_args(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ends the process on --help and on wrong options."""
    parser = Parser(description, allow_abbrev=False)
    add = parser.add_argument_group("data and results").add_argument
    add("--data_url", "--data-path", dest="data_path", type=Path, metavar="D",
        help="dataset folder that prepare.py filled: train/T91_x3.h5, val/Set5_x3.h5")
    add("--train_url", "--outputs-dir", dest="outputs_dir", type=Path, default=Path("outputs"),
        metavar="O", help="results go to O/x{scale} (default: %(default)s)")
    add("--scale", type=COUNT, default=3, help="enlargement factor (default: %(default)s)")
    add("--resume", type=lambda text: str(path(text)), nargs="?", const="auto", metavar="FILE",
        help="go on from this checkpoint, or from the newest one in the results")
    add("--init-weights", type=Path, metavar="FILE",
        help="start from the weights in this file, trained here or elsewhere (fine-tuning)")
    add("--save-every", type=COUNT, default=1, metavar="N",
        help="write epoch_{n}.pth every N epochs (default: %(default)s)")
    add("--select", choices=("eval", "held-out"), default="eval",
        help="the best epoch is that with the highest PSNR on the evaluation set, which the "
             "published figures do, or on a twentieth of the training images that is held out "
             "of training (default: %(default)s)")
    add("--tensorboard", action="store_true", help="write TensorBoard events, too")

    add = parser.add_argument_group("training").add_argument
    add("--recipe", choices=tuple(RECIPES), default="reference",
        help="reference: as published, 500 epochs; fast: the same network and PSNR in minutes; "
             "polish: get the last hundredths out of --init-weights (default: %(default)s)")
    add("--lr", type=POSITIVE,
        help="learning rate (default: reference 1e-4, fast 1e-3, polish 5e-4, times the square "
             "root of the number of processes); Muon's is 10 times as much with fast")
    add("--batch-size", type=COUNT, metavar="N",
        help="patches a step on each process (default: reference 32; of 48×48, fast 4, polish 16)")
    add("--num-epochs", type=COUNT, metavar="N",
        help="(default: reference 500, fast 10, polish 60)")
    add("--num-steps", type=NATURAL, default=0, metavar="N",
        help="end after N optimizer steps, if that is earlier")
    add("--optimizer", choices=("adam", "sgd", "adadelta", "lamb"),
        help="fused versions on an NPU, lamb only there (default: that of the recipe)")
    add("--seed", type=SEED, default=123, help="(default: %(default)s)")

    add = parser.add_argument_group("machine").add_argument
    add_device(add)
    add("--precision", choices=("auto", "fp32", "bf16", "fp16", "apex-O1", "apex-O2"),
        default="auto", help="auto: what is fastest on the device (default: %(default)s)")
    add("--loss-scale", type=loss_scale, default=32.0, metavar="S",
        help="of fp16 and apex: a number or dynamic (default: %(default)s)")
    add("--deterministic", action="store_true",
        help="deterministic algorithms only, so that the same seed, machine and number of threads "
             "give the same weights; the log says what it costs, on a CPU nothing but auto's trial")
    add("--eval-half", action="store_true",
        help="evaluate in training's half precision, too; otherwise in fp32")
    add("--combine-ddp", action="store_true",
        help="several NPUs: let apex average the gradients in place of DistributedDataParallel")
    add("--num-workers", type=NATURAL, default=8, metavar="N",
        help="processes that read a training set too large for memory (default: %(default)s)")
    add("--memory-share", type=number(float, above=0, at_most=1), default=0.5, metavar="F",
        help="share of the free memory that the training set may take (default: %(default)s)")

    add = parser.add_argument_group("looking into it").add_argument
    add("--check", action="store_true",
        help="print what is installed and what of it fits together, take one training step and "
             "compare it with the CPU's; needs no dataset and ends then, with status 0 if all is "
             "fine")
    add("--profile", type=Path, metavar="DIR",
        help="write a trace of 5 steps of the first epoch into DIR, for a trace viewer such as "
             "ui.perfetto.dev or MindStudio Insight, and print the operators that took longest")
    args, unknown = parser.parse_known_args(argv)
    try:
        _pass_over_platform_options(unknown)
        if args.data_path is None and not args.check:
            raise UserError("--data_url is missing: the dataset folder that prepare.py filled")
        if args.recipe == POLISH.name and args.init_weights is None and not args.check:
            raise UserError("--recipe polish goes on from trained weights: name their file with "
                            "--init-weights")  # fmt: skip
    except UserError as error:
        parser.error(str(error))
    return args


# fmt: on


def _pass_over_platform_options(unknown: list[str]) -> None:
    """Name unknown options in a warning on ModelArts; elsewhere only the platform's own pass."""
    if not unknown:
        return
    names = {word[2:].partition("=")[0] for word in unknown if word.startswith("--")}
    on_platform = any(os.environ.get(variable) for variable in PLATFORM_VARIABLES)
    if (not on_platform and not names <= PLATFORM_OPTIONS) or not unknown[0].startswith("--"):
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}")
    shown = " ".join(sorted(f"--{name}" for name in names))  # their values may be secret
    print(f"warning: ignored options that are not known: {shown}", file=sys.stderr)
