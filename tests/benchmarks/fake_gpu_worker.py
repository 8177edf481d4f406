"""Stands for benchmarks/gpu_check/worker.py: does what `script` of its job says, a list of (case, what happens)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


job = json.loads(sys.argv[1])
if job["script"] == "does not start":
    print("no such device", file=sys.stderr)
    sys.exit(3)
say(cases=[case for case, _ in job["script"]])
for case, happens in job["script"]:
    if case in job["done"]:
        continue
    say(begin=case)
    if happens == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"child {child.pid}", file=sys.stderr, flush=True)
        time.sleep(600)
    if happens == "crash":
        print("segmentation", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    say(case=case, verdict="ok", text=happens, numbers={"earlier": sorted(job["earlier"])}, seconds=0.5)
    if happens == "poison":
        os._exit(70)
