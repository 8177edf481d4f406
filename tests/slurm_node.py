"""A Slurm on loopback, of one node or several pretended ones, in a scratch folder; no service manager is needed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from utils.training_state import read_training_state

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
START_S = 60
CONFIGURATION = """ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldPort={ports[0]}
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
PartitionName=cpu Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=short Nodes=ALL MaxTime=2:00:00 MaxNodes=1 State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=2000 State=UNKNOWN\n"


@contextlib.contextmanager
def slurm_node(*, count: int = 1) -> Iterator[dict[str, str]]:
    """Environment for commands of a Slurm that runs until the block ends; skips the test where none can be started.

    Its folder has a short name of its own: slurmstepd's socket lies there, whose path may have 107 characters; with a
    longer one no job is started, and what slurmd says of it is "Resource temporarily unavailable".
    """
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"no Slurm on this machine ({', '.join(missing)}); Debian: slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own is started by root only")
    short = tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp")
    with short as folder, _started(Path(folder), count) as environment:
        yield environment


@contextlib.contextmanager
def _started(folder: Path, count: int) -> Iterator[dict[str, str]]:
    host, ports = socket.gethostname().split(".")[0], _free_ports(1 + count)
    names = [f"node{number}" for number in range(count)]
    for name in ("state", "munge"):
        (folder / name).mkdir()
    munge = folder / "munge"
    munge.chmod(0o700)
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o600)
    nodes = [NODE.format(name=name, host=host, port=port, cpus=os.cpu_count()) for name, port in zip(names, ports[1:])]
    text = "".join(nodes) + CONFIGURATION.format(host=host, folder=folder, ports=ports)
    (folder / "slurm.conf").write_text(text)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    words = [f"--{name}={munge / file}" for name, file in files.items()]
    commands = [["munged", "--force", "--foreground", *words], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", name] for name in names]
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.out").open("ab"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(_end, process)
        for _ in range(START_S * 2):
            words = ["sinfo", "-h", "-p", "cpu", "-t", "idle", "-o", "%D"]
            answer = subprocess.run(words, env=environment, capture_output=True, text=True)
            if answer.stdout.strip() == str(count):
                break
            time.sleep(0.5)
        else:
            pytest.skip(f"Slurm did not start: {(folder / 'slurmctld.out').read_text()[-500:]}")
        yield environment


def wait_until_idle(environment: dict[str, str], limit_s: float) -> None:
    """Wait until no job is left; jobs that wait for their time begin at once."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        answer = subprocess.run(["squeue", "-h", "-o", "%i %r"], env=environment, capture_output=True, text=True)
        rows = [line.split() for line in answer.stdout.splitlines()]
        if not rows:
            return
        _begin_now(rows, environment)
        time.sleep(0.3)
    raise AssertionError(f"jobs are left after {limit_s} s: {answer.stdout}")


def wait_for(what: str, is_so: Callable[[], bool], environment: dict[str, str], limit_s: float = 300) -> None:
    """Wait until something is so of jobs that run; those that wait for their time begin at once."""
    end_s = time.monotonic() + limit_s
    while not is_so():
        answer = subprocess.run(["squeue", "-h", "-o", "%i %r"], env=environment, capture_output=True, text=True)
        rows = [line.split() for line in answer.stdout.splitlines()]
        assert rows or is_so(), f"no job is left, and this was not seen: {what}"
        assert time.monotonic() < end_s, f"not so after {limit_s} s: {what}; jobs: {answer.stdout}"
        _begin_now(rows, environment)
        time.sleep(0.1)


def is_running(environment: dict[str, str], name: str, restarts: int) -> bool:
    """Whether the job of a name runs after it was queued again so often."""
    asked = subprocess.run(["squeue", "-h", "-n", name, "-o", "%i"], env=environment, capture_output=True, text=True)
    words = ["scontrol", "show", "job", asked.stdout.strip()]
    shown = subprocess.run(words, env=environment, capture_output=True, text=True).stdout.split()
    return {"JobState=RUNNING", f"Restarts={restarts}"} <= set(shown)


def _begin_now(rows: list[list[str]], environment: dict[str, str]) -> None:
    for number in (row[0] for row in rows if row[1] == "BeginTime"):
        subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], env=environment, check=False)
    if held := [row[0] for row in rows if row[1] == "launch"]:
        said = Path(environment["SLURM_CONF"]).with_name("slurmd.out").read_text()[-2000:]
        raise AssertionError(f"slurmd could not start {', '.join(held)} (launch failed requeued held): {said}")


def stop(environment: dict[str, str], name: str, how: str) -> str:
    """Do to a job what Slurm does of itself before the job's time is over, or to one that is preempted; its number."""
    asked = subprocess.run(["squeue", "-h", "-n", name, "-o", "%i"], env=environment, capture_output=True, text=True)
    words = ["scancel", "--batch", "--signal=USR1"] if how == "its time is over" else ["scontrol", "requeue"]
    subprocess.run([*words, number := asked.stdout.strip()], env=environment, check=True)
    return number


def is_training(fold: Path, epochs: int) -> bool:
    """Whether some epochs are done; no later than that others are not."""
    state = read_training_state(fold / "checkpoints")
    assert state is None or not state.finished, f"the training ended before it was stopped, after {state.epochs} epochs"
    return state is not None and state.epochs >= epochs


def epochs_done(fold: Path) -> int:
    """How many epochs of a training are done."""
    state = read_training_state(fold / "checkpoints")
    return 0 if state is None else state.epochs


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
