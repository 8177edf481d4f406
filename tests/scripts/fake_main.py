"""Stands in for main.py and preprocess.py --cascade: writes what they write, at once, and keeps a record of its calls.

Masks of fold 0 are the label that all cases share (Dice 1); those of other folds are empty (Dice 0): files of
`<data>/predictions`. Environment:
FAKE_CALLS  file to which each call appends a line.
FAKE_KILL   "<mode> <configuration> <fold> <moment>": kill the parent there, once (see `moment`).
FAKE_SIGNAL number of the signal that the parent gets in place of SIGKILL.
FAKE_FIFO   pipe from which the killer reads before it goes on, as an orphan.
FAKE_FAIL   "<mode> <configuration> <fold>": end with an error.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path


def main(words: list[str]) -> int:
    flags = {word[2:]: after for word, after in zip(words, [*words[1:], ""]) if word.startswith("--")}
    if "cascade" in flags:
        return prepare(flags)
    mode, results, shards = flags["exec_mode"], Path(flags["results"]), Path(flags["data"])
    what = f"{mode} {shards.name} {flags['fold']}"
    note(what + (" resumed" if "resume_training" in flags else ""), flags)
    if os.environ.get("FAKE_FAIL") == what:
        print("some words\nerror: out of luck")
        return 2
    moment(f"{what} begin")
    results.mkdir(parents=True, exist_ok=True)
    {"train": train, "predict": predict}[mode](flags, what, results, shards)
    return 0


def train(flags: dict[str, str], what: str, results: Path, shards: Path) -> None:
    checkpoints = results / "checkpoints"
    assert ("resume_training" in flags) == (checkpoints / "last.ckpt").is_file()
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / "epoch=0-dice=0.5000.ckpt").write_text("best")
    (checkpoints / "last.ckpt").write_text("last")
    moment(f"{what} checkpoint")
    write_record(results, {"epochs": 3, "train_s": 1.5})
    moment(f"{what} end")


def predict(flags: dict[str, str], what: str, results: Path, shards: Path) -> None:
    assert Path(flags["ckpt_path"]).is_file() and {"save_preds", "save_probabilities"} <= flags.keys()
    folder = results / f"preds_task_77_dim_{flags['dim']}_fold_{flags['fold']}{'_tta' if 'tta' in flags else ''}"
    folder.mkdir(exist_ok=True)
    for case in json.loads((shards / "splits.json").read_text())["folds"][int(flags["fold"])]["val"]:
        kind = "label" if flags["fold"] == "0" else "empty"
        shutil.copy(shards.parent / f"predictions/{kind}.nii.gz", folder / f"{case}.nii.gz")
        moment(f"{what} half")
        shutil.copy(shards.parent / f"predictions/{kind}.npy", folder / f"{case}.npy")
    write_record(results, {"predictions": str(folder)})
    moment(f"{what} end")


def prepare(flags: dict[str, str]) -> int:
    data, masks = Path(flags["results"]), Path(flags["cascade"])
    note("cascade", flags)
    source, target = data / "77_3d", data / "77_3d_cascade_fullres"
    cases = sorted(path.name.removesuffix("_x.npy") for path in source.glob("*_x.npy"))
    assert all((masks / f"{case}.nii.gz").is_file() for case in cases) and (masks / "plan.json").is_file()
    shutil.copytree(source, target, dirs_exist_ok=True)
    plan = json.loads((source / "plan.json").read_text()) | {"previous_stage": "3d_lowres"}
    (target / "plan.json").write_text(json.dumps(plan))
    moment("cascade end")
    return 0


def note(line: str, flags: dict[str, str]) -> None:
    record = {"what": line, "flags": flags, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    with open(os.environ["FAKE_CALLS"], "a") as file:
        file.write(json.dumps(record) + "\n")


def write_record(results: Path, outcome: dict) -> None:
    (results / "run.json").write_text(json.dumps({"outcome": outcome}))


def moment(name: str) -> None:
    """Kill the parent if this is the moment, and die too unless there is a pipe to wait at."""
    marker = Path(os.environ["FAKE_CALLS"]).with_suffix(".killed")
    if os.environ.get("FAKE_KILL") != name or marker.exists():
        return
    marker.touch()
    os.kill(os.getppid(), int(os.environ.get("FAKE_SIGNAL", signal.SIGKILL)))
    if "FAKE_FIFO" in os.environ:
        Path(os.environ["FAKE_FIFO"]).read_text()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
