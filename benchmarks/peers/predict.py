"""One side's prediction of raw scans by its own command, start-up included, with the same weights.

`nnunet` uses nnU-Net's default numbers of processes, `nnunet_sequential` its way without helper processes, which
spends less on start-up.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.measure import Job, Outcome, Stopwatch, serve
from benchmarks.peers.nnunet_files import CONFIGURATION, PREDICT, set_folders

PROJECT = Path(__file__).resolve().parents[2]


def ours(job: Job) -> Outcome:
    """scripts/inference.py."""
    folder, output = Path(job["folder"]), Path(job["scratch"]) / "masks"
    words = ["--input", str(folder / "scans"), "--output", str(output), "--model", str(folder / "model.zip")]
    # The others write no page about what they did.
    words += ["--no_report"]
    words += ["--gpus", "0", *(["--tta"] if job["tta"] else []), *(["--amp"] if job["precision"] == "bf16" else [])]
    return _command(job, [sys.executable, str(PROJECT / "scripts/inference.py"), *words], output)


def nnunet(job: Job, *words: str) -> Outcome:
    """nnUNetv2_predict."""
    folder, output = Path(job["folder"]), Path(job["scratch"]) / "masks"
    results = set_folders(Path(job["scratch"]))["nnUNet_results"]
    # In a process of its own, so that this one stays small.
    script = str(Path(__file__).with_name("nnunet_files.py"))
    subprocess.run([sys.executable, script, str(folder), str(results)], check=True, stdout=sys.stderr)
    words += ("--disable_progress_bar", *(() if job["tta"] else ("--disable_tta",)))
    chosen = ["-i", str(folder / "scans"), "-o", str(output), "-d", "4", "-c", CONFIGURATION, "-f", "0"]
    return _command(job, [sys.executable, "-c", PREDICT, *chosen, "-device", "cpu", *words], output)


def nnunet_sequential(job: Job) -> Outcome:
    """nnUNetv2_predict without processes for preprocessing and export."""
    return nnunet(job, "-npp", "0", "-nps", "0")


def _command(job: Job, words: list[str], output: Path) -> Outcome:
    with Stopwatch() as watch:
        subprocess.run(words, check=True, stdout=sys.stderr)
    scans = len(list((Path(job["folder"]) / "scans").iterdir()))
    made = len(list(output.glob("*.nii.gz")))
    assert made == scans, f"{made} masks of {scans} scans"
    names = ("tta", "precision", "threads", "weights")
    settings = {name: job[name] for name in names if name in job} | {"scans": scans}
    return watch.seconds | {"items": scans, "predictions": str(output), "settings": settings}


if __name__ == "__main__":
    serve({"ours": ours, "nnunet": nnunet, "nnunet_sequential": nnunet_sequential})
