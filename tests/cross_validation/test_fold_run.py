"""One fold: what it is asked for, which words its commands get, what is taken away; no command is run."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from cross_validation.fold_run import CONDEMNED, FoldRun, RunFlags, condemn, refuse_conflicts
from cross_validation.scheduler import Command
from utils.errors import UserError
from utils.files import write_json


@pytest.fixture
def run(data, tmp_path) -> FoldRun:
    return FoldRun(
        task="77", configuration="3d_fullres", fold=0, dim=3, shards=data / "77_3d",
        folder=tmp_path / "results/77_3d_fullres/fold_0",
        flags=RunFlags.of(("--epochs", "2"), dim=3, several_gpus=False),
    )  # fmt: skip


def begun(run: FoldRun) -> FoldRun:
    """With the folder of an attempt."""
    (run.folder / "checkpoints").mkdir(parents=True)
    write_json(run.request(), run.folder / "options.json")
    return run


def words_of(run: FoldRun, gpu: str | None = None) -> list[str]:
    step = next(run.steps(gpu))
    assert isinstance(step, Command)
    return list(step.words)


def value_of(words: list[str], flag: str) -> str:
    """Of a flag that is given twice the last one counts."""
    return [after for word, after in itertools.pairwise(words) if word == flag][-1]


@pytest.mark.slow
def test_places_and_devices_make_no_other_run(run):
    other = RunFlags.of(("--epochs", "2", "--num_workers", "3", "--affinity", "disabled"), dim=3, several_gpus=True)
    assert dataclasses.replace(run, flags=other).request() == run.request()
    longer = RunFlags.of(("--epochs", "3"), dim=3, several_gpus=False)
    assert dataclasses.replace(run, flags=longer).request() != run.request()


def test_a_training_begins_with_our_flags_behind_those_of_the_user(run):
    words = words_of(run)
    assert value_of(words, "--epochs") == "2" and value_of(words, "--exec_mode") == "train"
    assert value_of(words, "--gpus") == "0" and value_of(words, "--fold") == "0"
    assert value_of(words, "--results") == str(run.folder) and "--resume_training" not in words
    assert (run.folder / "options.json").is_file()


def test_a_training_that_has_a_checkpoint_is_resumed(run):
    begun(run)
    (run.folder / "checkpoints/last.ckpt").touch()
    assert "--resume_training" in words_of(run, "0")


@pytest.mark.slow
def test_cores_are_not_pinned_where_several_runs_share_them(run):
    several = dataclasses.replace(run, flags=RunFlags.of((), dim=3, several_gpus=True))
    assert value_of(words_of(several), "--affinity") == "disabled"


def test_a_folder_of_something_else_is_left_alone(run):
    run.folder.mkdir(parents=True)
    (run.folder / "notes.txt").touch()
    with pytest.raises(UserError, match="holds something else"):
        refuse_conflicts([run])


@pytest.mark.slow
def test_other_options_are_refused_and_named(run):
    begun(run)
    longer = dataclasses.replace(run, flags=RunFlags.of(("--epochs", "3"), dim=3, several_gpus=False))
    with pytest.raises(UserError, match="3d_fullres fold 0: --max_epochs was 2, now it is 3"):
        refuse_conflicts([longer])
    refuse_conflicts([dataclasses.replace(longer, overwritten=(0,))])


def test_a_condemned_attempt_goes_and_another_fold_stays(run):
    begun(run)
    other = begun(dataclasses.replace(run, fold=1, folder=run.folder.with_name("fold_1")))
    condemn([dataclasses.replace(run, overwritten=(0,)), other])
    assert not run.folder.exists() and other.folder.is_dir()
    assert not list(run.folder.parent.glob(".fold_0.removed-*"))


def test_a_removal_that_was_cut_short_is_finished(run):
    begun(run)
    (run.folder / CONDEMNED).touch()
    run.remove()
    assert not run.folder.exists()


def test_a_fold_that_the_data_no_longer_have_is_refused(run):
    with pytest.raises(UserError, match="has 2 folds now, there is no fold 5"):
        dataclasses.replace(run, fold=5).request()
