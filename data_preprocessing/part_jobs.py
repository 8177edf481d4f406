"""Preprocessing in parts: what is found out once for all of them, and the jobs of a Slurm array that do one each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.planning import plan_file, resume
from data_preprocessing.planning.fingerprint import combine
from data_preprocessing.runner import inspect_cases, lacking_parts
from utils.locks import folder_lock
from utils.runs import prepare_folder
from utils.schema import Fingerprint, Plan
from utils.slurm import SlurmJob, write_array
from utils.slurm_resources import SlurmResources
from utils.workers import Workers


def shared_fingerprint(folder: Path, dataset: Dataset, workers: Workers, *, relative_size: bool) -> Fingerprint:
    """The fingerprint of the training cases: whichever part comes first inspects them all, and the others wait.

    Raises:
        UserError: some cases are faulty, or the folder cannot be written to.
    """
    prepare_folder(folder, "--results")
    inspection = resume.describe_sources(dataset)
    # Mostly it is there; only the first part of all is long at it.
    if (found := resume.stored_fingerprint(folder, inspection, relative_size=relative_size)) is not None:
        return found
    with folder_lock(folder, brief=True):
        found = resume.stored_fingerprint(folder, inspection, relative_size=relative_size)
        if found is None:
            found = combine(inspect_cases(dataset, dataset.training, workers))
            resume.store_fingerprint(folder, found, inspection)
    return found


def parts_to_do(folder: Path, cases: Sequence[CaseFiles], plan: Plan | None, count: int, mark: str) -> list[int]:
    """Numbers of the parts that have something left to do.

    Args:
        folder: of the shards.
        cases: all of them.
        plan: that the shards are made by; None where it is not known yet.
        count: number of parts.
        mark: name of the file that says that the folder is ready.
    """
    if plan is None:
        return list(range(1, count + 1))
    waiting = [part.index for part in lacking_parts(cases, plan, folder, count)]
    # Where all cases are there and the folder is not ready, any part makes it so.
    return waiting or ([] if (folder / mark).is_file() else [count])


def planned(folder: Path, dataset: Dataset, make_plan: Callable[[Fingerprint], Plan]) -> Plan | None:
    """The plan of a folder whose cases have been inspected; None where they have not.

    Raises:
        UserError: an edited plan is malformed or does not fit.
    """
    fingerprint = resume.stored_fingerprint(folder, resume.describe_sources(dataset))
    return None if fingerprint is None else plan_file.choose_plan(folder, make_plan(fingerprint), overwrite=False).plan


def write_jobs(
    scripts: Path, words: Sequence[str], parts: Sequence[int], count: int, resources: SlurmResources, *, inspect: bool
) -> None:
    """Write a job array that does these parts, after a job that inspects the cases where that is left to do.

    Args:
        scripts: folder for the job scripts.
        words: the command of a part, without `--part`.
        parts: their numbers.
        count: number of all parts.
        resources: what each job asks for.
        inspect: whether cases are inspected first.

    Raises:
        UserError: the folder cannot be written to, or the cluster has nothing that the jobs could run on.
    """
    first = SlurmJob(name="inspect", words=(*words, "--inspect"))
    array = SlurmJob(name="preprocess", words=tuple(words), parts=tuple(parts), num_parts=count)
    write_array(scripts, array, resources, before={"a job that inspects all cases": first} if inspect else {})
