"""What inference.py keeps in a folder of masks, what it predicts again and why, and what it never takes away."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading

import nibabel as nib
import numpy as np
import pytest

from inference import mask_folder
from inference.mask_folder import MaskFolder
from inference.mask_stamps import MadeBy
from inference.preparing import as_volume
from inference.scans import Scan
from tests.conftest import PROJECT
from tests.models.checkpoints import save_ours
from tests.scripts.trained import ORGAN_ONLY, PLANS, decide, masks, predict, train, write_scans
from tests.tiny_task import write_scan
from utils import locks, reserved
from utils.training_state import TrainingState, write_training_state


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "scans")


@pytest.fixture
def model(tmp_path):
    return train(tmp_path, "3d_fullres") / "04_3d_fullres"


@pytest.fixture
def words(model, scans, tmp_path):
    return ["--input", scans, "--output", tmp_path / "out", "--model", model]


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def other_scan(path, seed=7) -> None:
    write_scan(path, np.random.default_rng(seed).uniform(1, 9, (12, 10, 14)).astype(np.float32))


class TestPredictedAgain:
    """After a first run with probabilities: everything that makes masks stale, with the reason."""

    @pytest.fixture
    def out(self, words, tmp_path, capsys):
        assert predict(*words, "--save_probabilities") == 0
        capsys.readouterr()
        return tmp_path / "out"

    def fresh(self, words, tmp_path, *flags) -> dict[str, np.ndarray]:
        """What the same flags give in an empty folder."""
        new = [tmp_path / "fresh" if word == tmp_path / "out" else word for word in words]
        assert predict(*new, *flags) == 0
        return masks(tmp_path / "fresh")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            (("--tta",), "--tta was off, now it is on"),
            (("--overlap", "0.25"), "--overlap was 0.5, now it is 0.25"),
            (("--blend", "constant"), "--blend was gaussian, now it is constant"),
            (("--folds", "1"), "made by 3d_fullres (fold_0, fold_1), now it is 3d_fullres (fold_1)"),
        ],
    )
    def test_with_other_settings(self, words, out, tmp_path, capsys, flags, reason):
        assert predict(*words, *flags) == 0
        printed = capsys.readouterr().out
        assert f"2 predicted again ({reason}): a, b" in printed and "2 written, 0 kept" in printed
        for name, mask in self.fresh(words, tmp_path, *flags).items():
            np.testing.assert_array_equal(mask, masks(out)[name])
        # Probabilities of the old masks do not stay beside the new ones.
        assert not list(out.glob("*.npy"))

    @pytest.mark.slow
    def test_with_another_training_or_another_model(self, words, out, tmp_path, model, capsys):
        save_ours(model / "fold_1/checkpoints/last.ckpt", PLANS["3d_fullres"], seed=99)
        assert predict(*words) == 0
        assert "2 predicted again (made by other weights of 3d_fullres (fold_0, fold_1)): a, b" in (
            capsys.readouterr().out
        )
        train(tmp_path, "2d")
        assert predict(*words[:-1], tmp_path / "04_2d") == 0
        assert "made by 3d_fullres (fold_0, fold_1), now it is 2d (fold_0, fold_1)" in capsys.readouterr().out
        assert record(out)["options"]["model"].endswith("04_2d")

    @pytest.mark.slow
    def test_with_another_postprocessing(self, words, out, tmp_path, capsys):
        best = decide(tmp_path, "3d_fullres", post=ORGAN_ONLY)
        assert predict(*words[:-1], best) == 0
        assert "the post-processing was none, now it is largest component of all foreground" in capsys.readouterr().out

    @pytest.mark.slow
    def test_where_precision_is_another_one(self, words, out, capsys):
        stamps = json.loads((out / "masks.json").read_text())
        stamps["masks"]["a"]["made_by"]["settings"]["the precision"] = "bfloat16"
        (out / "masks.json").write_text(json.dumps(stamps))
        assert predict(*words) == 0
        printed = capsys.readouterr().out
        assert "1 predicted again (the precision was bfloat16, now it is float32): a\n" in printed
        assert "1 written, 1 kept" in printed

    @pytest.mark.slow
    def test_where_the_scan_is_another_one(self, words, out, scans, tmp_path, capsys):
        other_scan(scans / "a.nii.gz")
        assert predict(*words) == 0
        printed = capsys.readouterr().out
        assert "1 predicted again (the scan of that name is another one now): a\n" in printed
        assert "1 written, 1 kept" in printed
        for name, mask in self.fresh(words, tmp_path).items():
            np.testing.assert_array_equal(mask, masks(out)[name])
        assert not (out / "a.npy").exists() and (out / "b.npy").exists()

    @pytest.mark.slow
    def test_where_only_its_time_is_another_one(self, words, out, scans, capsys):
        os.utime(scans / "b.nii.gz", ns=(1, 1))
        assert predict(*words) == 0
        assert "1 written, 1 kept" in capsys.readouterr().out

    @pytest.mark.slow
    def test_where_the_probabilities_are_gone_or_of_another_run(self, words, out, capsys):
        (out / "a.npy").unlink()
        np.save(out / "b.npy", np.zeros((3, 14, 10, 12), np.float32))
        os.utime(out / "b.npy", ns=(1, 1))
        assert predict(*words) == 0
        assert "0 written, 2 kept" in capsys.readouterr().out
        assert predict(*words, "--save_probabilities") == 0
        assert "2 predicted again (its probabilities are missing or were changed since): a, b" in (
            capsys.readouterr().out
        )

    @pytest.mark.slow
    def test_but_not_where_everything_was_moved_or_copied(self, words, out, scans, tmp_path, capsys):
        scans.rename(tmp_path / "moved")
        shutil.copytree(out, tmp_path / "copy")
        for path in (tmp_path / "copy").glob("*.nii.gz"):
            os.utime(path, ns=(1, 1))
        assert predict("--input", tmp_path / "moved", "--output", tmp_path / "copy", *words[4:]) == 0
        printed = capsys.readouterr()
        assert "0 written, 2 kept" in printed.out and "edited" not in printed.out

    @pytest.mark.slow
    def test_by_an_ensemble_too(self, words, out, scans, tmp_path, capsys):
        train(tmp_path, "2d")
        both = [*words[:-1], decide(tmp_path, "2d", "3d_fullres")]
        assert predict(*both) == 0
        printed = capsys.readouterr().out
        assert "now it is 2d (fold_0, fold_1) + 3d_fullres (fold_0, fold_1)" in printed and "2 written" in printed
        assert predict(*both) == 0
        assert "0 written, 2 kept" in capsys.readouterr().out
        other_scan(scans / "b.nii.gz")
        assert predict(*both) == 0
        assert "1 written, 1 kept" in capsys.readouterr().out


@pytest.mark.slow
def test_files_of_a_person_are_errors_and_stay_unless_overwritten(words, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.nii.gz").write_bytes(b"mine")
    assert predict(*words) == 2
    message = capsys.readouterr().err
    assert "out/b.nii.gz" in message and "--overwrite" in message
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"b.nii.gz": b"mine"}
    # Probabilities of a person matter only where some are to be written.
    (out / "b.nii.gz").rename(out / "a.npy")
    assert predict(*words, "--save_probabilities") == 2
    assert predict(*words) == 0 and (out / "a.npy").read_bytes() == b"mine"
    assert predict(*words, "--save_probabilities") == 2
    assert predict(*words, "--save_probabilities", "--overwrite") == 0
    assert "a.npy" in capsys.readouterr().out and np.load(out / "a.npy").shape == (3, 14, 10, 12)


@pytest.mark.slow
def test_an_edited_mask_is_kept_and_never_replaced_in_silence(words, tmp_path, capsys):
    assert predict(*words) == 0
    path = tmp_path / "out/a.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    edited = path.read_bytes()
    capsys.readouterr()
    assert predict(*words) == 0
    assert "kept as they were edited after prediction: a" in capsys.readouterr().out
    assert predict(*words, "--tta") == 2
    message = capsys.readouterr().err
    assert "out/a.nii.gz" in message and "out/b.nii.gz" not in message
    assert path.read_bytes() == edited
    assert predict(*words, "--tta", "--overwrite") == 0
    assert "files of other origin or edited ones are replaced" in capsys.readouterr().out
    assert path.read_bytes() != edited


@pytest.mark.slow
def test_run_json_does_not_speak_for_masks_of_another_model(words, scans, tmp_path, capsys):
    assert predict(*words) == 0
    assert "masks_of_other_origin" not in record(tmp_path / "out")["outcome"]
    write_scan(tmp_path / "more/c.nii.gz", np.random.default_rng(5).uniform(1, 9, (12, 10, 14)).astype(np.float32))
    train(tmp_path, "2d")
    capsys.readouterr()
    assert predict("--input", tmp_path / "more", "--output", tmp_path / "out", "--model", tmp_path / "04_2d") == 0
    others = record(tmp_path / "out")["outcome"]["masks_of_other_origin"]
    assert set(others) == {"a", "b"} and "made by 3d_fullres (fold_0, fold_1)" in others["a"]
    assert "also holds masks that this run has not made, nor one like it: a, b" in capsys.readouterr().err
    # A scan that fails keeps its old mask, and that is said too.
    (scans / "a.nii.gz").write_bytes(b"damaged")
    before = (tmp_path / "out/a.nii.gz").read_bytes()
    assert predict(*words[:-1], tmp_path / "04_2d") == 1
    assert set(record(tmp_path / "out")["outcome"]["masks_of_other_origin"]) == {"a"}
    assert (tmp_path / "out/a.nii.gz").read_bytes() == before


@pytest.mark.slow
def test_a_killed_run_leaves_no_record_of_another_model(words, tmp_path, monkeypatch):
    assert predict(*words) == 0

    def die(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inference.scan_run.run_pipeline", lambda *_, **__: die())
    assert predict(*words, "--tta") == 130
    assert not (tmp_path / "out/run.json").exists() and len(masks(tmp_path / "out")) == 2


def freeze(patched, number: int) -> list[str]:
    """Let nothing change any more after so many changes of files, as if the program had been killed; returns those."""
    changes: list[str] = []

    def until(function):
        def call(path, *args, **kwargs):
            if len(changes) >= number:
                raise OSError(errno.EIO, "killed", str(path))
            changes.append(f"{function.__name__} {path}")
            return function(path, *args, **kwargs)

        return call

    patched.setattr(os, "replace", until(os.replace))
    patched.setattr(os, "unlink", until(os.unlink))
    return changes


def test_killed_at_any_step_no_mask_passes_for_one_that_it_is_not(tmp_path, monkeypatch):
    """A mask of 0 with probabilities of 0 is replaced by ones, and the program killed after each change."""
    write_scan(tmp_path / "a.nii.gz", np.zeros((3, 3, 3), np.float32))
    scan, geometry = Scan(case="a", images=(tmp_path / "a.nii.gz",)), as_volume(np.zeros((3, 3, 3)), (1, 1, 1)).geometry
    out = tmp_path / "out"

    def write(value: int) -> None:
        folder = MaskFolder(out, MadeBy(model=str(value), name="m", settings={}))
        if folder.unfinished([scan], save_probabilities=True):
            folder.begin()
            with folder.writing(scan, (2, 3, 3, 3), old=[out / "a.doubt.json", out / "a.map"]) as files:
                files.probabilities[...] = value
                files.name_beside(out / "a.doubt.json").write_text(str(value))
                if value == 0:
                    files.name_beside(out / "a.map").write_text("of zeros")
                files.write(np.full((3, 3, 3), value, np.uint8), geometry)

    def check(value: int) -> None:
        assert (masks(out)["a.nii.gz"] == value).all() and (np.load(out / "a.npy") == value).all()
        assert (out / "a.doubt.json").read_text() == str(value) and (out / "a.map").exists() == (value == 0)

    seen, number = set(), 0
    while "all" not in seen:
        number += 1
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        write(0)
        check(0)
        with monkeypatch.context() as patched:
            freeze(patched, number)
            try:
                write(1)
                seen.add("all")
            except OSError:
                seen.add((out / "a.nii.gz").exists())
                # What is said of a mask is there where the mask is, and is said of that mask.
                if (out / "a.nii.gz").exists():
                    assert (masks(out)["a.nii.gz"] == int((out / "a.doubt.json").read_text())).all()
                    assert (out / "a.map").exists() == (masks(out)["a.nii.gz"] == 0).all()
        # Whatever is there, either value is what comes out when it is asked for.
        for value in (number % 2, 1 - number % 2):
            write(value)
            check(value)
    assert number > 6 and seen == {True, False, "all"}


class TestOutputFolders:
    @pytest.mark.slow
    def test_links_to_the_scans_are_never_lost(self, words, scans, tmp_path, capsys):
        links = tmp_path / "links"
        links.mkdir()
        for name in ("a", "b"):
            (links / f"{name}.nii.gz").symlink_to(scans / f"{name}.nii.gz")
        (tmp_path / "alias").symlink_to(links)
        for folder, output in ((links, links), (links, tmp_path / "alias"), (tmp_path / "alias", links)):
            assert predict("--input", folder, "--output", output, *words[4:], "--overwrite") == 2
            assert "folder of the scans" in capsys.readouterr().err
        assert all(path.is_symlink() for path in links.iterdir()) and len(list(links.iterdir())) == 2
        # The scans given by their own folder, the links lie where masks would.
        assert predict("--input", scans, "--output", links, *words[4:], "--overwrite") == 2
        assert "links to the scans" in capsys.readouterr().err
        assert all(path.is_symlink() for path in links.iterdir()) and len(list(links.iterdir())) == 2

    def test_hard_links_to_the_scans_are_never_lost(self, words, scans, tmp_path):
        (tmp_path / "links").mkdir()
        os.link(scans / "a.nii.gz", tmp_path / "links/a.nii.gz")
        assert predict(*words[:2], "--output", tmp_path / "links", *words[4:], "--overwrite") == 2
        assert os.path.samefile(scans / "a.nii.gz", tmp_path / "links/a.nii.gz")

    @pytest.mark.slow
    def test_the_models_folder_stays_a_model(self, words, model, tmp_path, capsys):
        """A folder of folds, of one fold's checkpoints, and one with the record of a training."""
        before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
        for output in (model, model / "fold_0/checkpoints"):
            assert predict(*words[:2], "--output", output, *words[4:]) == 0
            assert predict(*words[:2], "--output", tmp_path / f"after_{output.name}", *words[4:]) == 0
        (model / "fold_0/run.json").write_text('{"outcome": {"epochs": 3}}')
        assert predict(*words[:2], "--output", model / "fold_0", *words[4:]) == 2
        assert "run.json of something else" in capsys.readouterr().err
        assert (model / "fold_0/run.json").read_text() == '{"outcome": {"epochs": 3}}'
        assert all(path.read_bytes() == content for path, content in before.items())

    @pytest.mark.slow
    def test_a_plan_of_preprocessed_data_is_not_replaced(self, words, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/plan.json").write_text("{}")
        assert predict(*words, "--save_probabilities") == 2
        assert "plan.json of something else" in capsys.readouterr().err
        assert predict(*words) == 0 and (tmp_path / "out/plan.json").read_text() == "{}"


class TestFullDisk:
    """Room for one scan's probabilities is missing; b has a larger file than a."""

    @pytest.fixture(autouse=True)
    def larger(self, scans):
        write_scan(scans / "b.nii.gz", np.random.default_rng(1).uniform(1, 9, (24, 20, 28)).astype(np.float32))

    LIMIT = 3 * 4 * 12 * 10 * 14 + 10_000

    @pytest.mark.slow
    @pytest.mark.parametrize("configurations", [("3d_fullres",), ("2d", "3d_fullres")])
    def test_the_limit_of_a_process_fails_that_scan_alone(self, words, tmp_path, configurations):
        train(tmp_path, "2d")
        code = (
            "import resource, signal, sys\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "from tests.scripts.trained import predict\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({self.LIMIT}, {self.LIMIT}))\n"
            "sys.exit(predict(*sys.argv[1:]))\n"
        )
        best = decide(tmp_path, *configurations)
        command = [sys.executable, "-c", code, *map(str, words[:-1]), str(best), "--save_probabilities"]
        variables = os.environ | {"PYTHONPATH": str(PROJECT)}
        run = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=300)
        assert run.returncode == 1, run.stderr
        assert "b.npy needs 0.16 MB of disk, and there is no room for it" in run.stderr
        assert set(masks(tmp_path / "out")) == {"a.nii.gz"} and np.load(tmp_path / "out/a.npy").any()
        assert not [*(tmp_path / "out").glob(".tmp-*"), *(tmp_path / "out").glob("b*")]
        assert set(record(tmp_path / "out")["outcome"]["failed"]) == {"b"}

    def test_room_that_can_be_known_is_asked_for_before_the_work(self, words, tmp_path, monkeypatch, capsys):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=self.LIMIT))
        assert predict(*words, "--save_probabilities") == 1
        message = capsys.readouterr().err
        assert "the probabilities of 2 scans need 0.18 MB of disk, 0.03 MB are free in" in message
        assert "out: the probabilities of b need 0.16 MB" in message and set(masks(tmp_path / "out")) == {"a.nii.gz"}

    @pytest.mark.slow
    def test_an_old_mask_stays_where_the_new_one_finds_no_room(self, words, tmp_path, monkeypatch):
        assert predict(*words, "--save_probabilities") == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("b.n*")}
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=self.LIMIT))
        assert predict(*words, "--save_probabilities", "--tta") == 1
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("b.n*")} == before


@pytest.mark.slow
def test_a_second_run_waits_and_keeps_what_the_first_has_made(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(locks, "_WAIT_S", 0.01)
    told, real, first = threading.Event(), print, []

    def said(*args, **kwargs) -> None:
        real(*args, **kwargs)
        if "waiting for another run" in str(args[0]):
            told.set()

    monkeypatch.setattr(locks, "print", said, raising=False)
    with locks.folder_lock(tmp_path / "out"):
        second = threading.Thread(target=lambda: first.append(predict(*words)))
        second.start()
        assert told.wait(60)
        assert not list((tmp_path / "out").glob("*.nii.gz")) and not (tmp_path / "out/masks.json").exists()
    second.join(120)
    assert first == [0] and len(masks(tmp_path / "out")) == 2
    assert not (tmp_path / "out" / locks.LOCK).exists()


@pytest.mark.slow
def test_damaged_stamps_are_named(words, tmp_path, capsys):
    assert predict(*words) == 0
    (tmp_path / "out/masks.json").write_text('{"version": 1, "masks"')
    assert predict(*words) == 2
    message = capsys.readouterr().err
    assert "masks.json" in message and "--overwrite" in message
    assert predict(*words, "--overwrite") == 0 and predict(*words) == 0


@pytest.mark.slow
def test_an_interrupted_training_predicts_only_where_that_is_asked_for(words, model, capsys):
    state = TrainingState(fold=1, epochs=3, max_epochs=10, finished=False)
    write_training_state(model / "fold_1/checkpoints", state)
    assert predict(*words) == 2
    assert "fold 1 was interrupted after epoch 3 of 10" in capsys.readouterr().err
    assert predict(*words, "--allow_unfinished") == 0


def test_names_are_counted_when_there_are_many():
    assert mask_folder.listed([str(number) for number in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... and 2 more"


class TestReservedArrays:
    def test_zeros_of_that_shape_that_numpy_reads(self, tmp_path):
        array = reserved.create_array(tmp_path / "a.npy", (2, 3, 4), target=tmp_path / "b.npy")
        array[1, 2] = 5
        array.flush()
        expected = np.zeros((2, 3, 4), np.float32)
        expected[1, 2] = 5
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
        found = (tmp_path / "a.npy").stat()
        assert found.st_blocks * 512 >= found.st_size

    def test_zeros_are_written_where_nothing_can_be_reserved(self, tmp_path, monkeypatch):
        def refuse(*_) -> None:
            raise OSError(reserved.errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
        shape = (3, 300, 400)
        reserved.create_array(tmp_path / "a.npy", shape, target=tmp_path / "a.npy")[...] = 1
        assert np.load(tmp_path / "a.npy").sum() == 360_000
        found = (tmp_path / "a.npy").stat()
        assert found.st_blocks * 512 >= found.st_size

    def test_a_full_disk_names_the_file_and_what_it_needs(self, tmp_path, monkeypatch):
        def full(*_) -> None:
            raise OSError(reserved.errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(reserved.UserError, match=r"b\.npy needs 400\.0 MB of disk"):
            reserved.create_array(tmp_path / "a.npy", (1, 1000, 1000, 100), target=tmp_path / "b.npy")
