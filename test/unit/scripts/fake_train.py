"""Stands in for train.py and evaluate.py in the tests of the scripts; FAKE tells what happens.

Each start appends a line to $RECORD: the arguments, the working directory, the environment.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

with Path(os.environ["RECORD"]).open("a") as record:
    print(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}), file=record, flush=True)
sys.stdout.reconfigure(line_buffering=True, write_through=False)  # several write into one log
FAKE = os.environ.get("FAKE", "ok")
MAIN = os.environ.get("RANK", os.environ.get("RANK_ID", "0")) == "0"

received = []


def stop(number: int, _frame: object) -> None:
    """Count signals; the status that the process ends with tells of how many there were."""
    received.append(number)
    print(f"got signal {number}")


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)


def save() -> None:
    """Leave a checkpoint, and train.py's line that says so."""
    path = Path(options["--train_url"]) / "x3" / "checkpoint_7.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    print("at step 7: the state is saved; go on with the same command and --resume")


options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
RECIPE = "recipe: reference, 1,500 steps of {} samples on 1 process(es), adam, learning rate 0.0001"
if FAKE == "begin, fail" or (FAKE == "wait" and MAIN):
    print("device: cpu (auto), precision: fp32 (as asked)")
    print(RECIPE.format(32))
if FAKE.endswith("fail") and MAIN:
    print("a line before the end\nerror: the disk is full")
    sys.exit(7)
if FAKE.startswith("wait") or (FAKE == "fail" and not MAIN):
    print("waiting")
    deadline = time.monotonic() + int(os.environ["HANG"])
    while not received and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # a second signal would arrive in this time
    if FAKE == "wait" and MAIN:
        save()
    sys.exit(128 + received[0] if len(received) == 1 else 99)
if not MAIN:
    print("no figures: not rank 0")
    sys.exit(0)
if "--train_url" in options:
    best = Path(options["--train_url"]) / "x3" / "best.pth"
    best.parent.mkdir(parents=True, exist_ok=True)
    best.write_text("weights")
if "ANEW" in os.environ:
    print("warning: no checkpoint in /out to resume from; starting")
kind = "npu:0" if FAKE == "npu" else "cpu"
print(f"device: {kind} (auto), precision: fp32 (as asked)")
if FAKE == "silent":
    sys.exit(0)
print("evaluation set: /data/Set5_x3.h5, 5 images, bicubic 30.92 dB (modelzoo protocol)")
parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", default="n/a")
print(RECIPE.format(parser.parse_known_args()[0].batch_size))
print("first 5 steps: 1.234567 s (compilation and warm-up, not in each_step_time)")
step = 0.0 if FAKE == "zero" else 0.002
better = int(os.environ.get("BETTER", "0"))  # dB, and half the loss for each
psnr = [30 + better, 32 + better, 31 + better]
for epoch in range(int(os.environ.get("FIRST", "0")), 3):
    loss = 0.5 / (epoch + 1) / 2**better
    print(f"epoch{epoch} : loss={loss:.6f}, each_step_time={step * (epoch + 1):.6f}")
    print(f"eval psnr: {psnr[epoch]:.2f}")
time.sleep(1.1 if FAKE == "slow" else 0)
print(f"best epoch: 1, psnr: {psnr[1]:.2f}")
print("(chosen on Set5_x3 itself)")
