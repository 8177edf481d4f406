"""Decisions about labels: understood, refused with reasons, carried out on a copy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.decisions import Decision, carry_out, parse_decision, read_decisions
from scripts import verify_dataset
from tests.tiny_task import SHAPE_XYZ, Task, make_task, write_scan
from utils.errors import EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, UserError, run_cli
from utils.files import file_digest
from utils.label_audit import AuditRow, write_audit
from utils.schema import LabelScheme

LABELS = LabelScheme(names=("background", "a", "b"), values=(0, 1, 2))


def row(case: str = "scan0", decision: str = "", **changes: object) -> AuditRow:
    base = AuditRow(
        rank=1, case=case, scope="case", score=9.0, suspicious=True, kind="shifted", structure="foreground",
        where="3-5 3-6 2-4", suggestion="", decision=decision, label="", label_digest="",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def image(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture
def task(tmp_path) -> Task:
    made = make_task(tmp_path, num_cases=4)
    write_scan(made.folder / "imagesTs/unseen.nii.gz", np.full(SHAPE_XYZ, 7.5, np.float32) + np.eye(10, 14)[..., None])
    return made


def decide(task: Task, *rows: AuditRow) -> Path:
    path = task.data.parent / "audit.csv"
    digests = {
        case: file_digest(task.folder / f"labelsTr/{case}.nii.gz") for case in ("scan0", "scan1", "scan2", "scan3")
    }
    write_audit(
        [dataclasses.replace(each, label_digest=each.label_digest or digests.get(each.case, "")) for each in rows], path
    )
    return path


def verify(*flags: object) -> int:
    return run_cli(lambda: verify_dataset.main([*map(str, flags), "--n_jobs", "1"]))


@pytest.mark.slow
def test_the_copy_follows_the_decisions_and_the_source_stays(task, tmp_path, capsys):
    describe = task.description()
    task.describe(labels={"0": "background", "1": "organ", "2": "other"})
    other = np.zeros(SHAPE_XYZ, np.uint8)
    other[1:3, 1:3, 1:3] = 2
    write_scan(tmp_path / "redrawn.nii.gz", other)
    before = {path: path.read_bytes() for path in task.data.rglob("*.nii.gz")}
    table = decide(task, row("scan0", "shift 2 0 -1"), row("scan0", "", scope="place"), row("scan1", "remove"),
                   row("scan2", "swap 1 2"), row("scan3", "replace redrawn.nii.gz"))  # fmt: skip
    assert verify("--data", task.folder, "--fix", tmp_path / "copy", "--decisions", table) == EXIT_OK
    copy = tmp_path / "copy/Task77_Tiny/labelsTr"
    moved = np.argwhere(image(copy / "scan0.nii.gz"))
    assert moved.min(0).tolist() == [5, 3, 1] and moved.max(0).tolist() == [7, 6, 3]
    assert not (copy / "scan1.nii.gz").exists() and not (copy.parent / "imagesTr/scan1.nii.gz").exists()
    assert np.array_equal(image(copy / "scan2.nii.gz"), 2 * image(task.folder / "labelsTr/scan2.nii.gz"))
    assert np.array_equal(image(copy / "scan3.nii.gz"), other)
    assert {path: path.read_bytes() for path in task.data.rglob("*.nii.gz")} == before
    printed = capsys.readouterr().out
    assert "scan0: label: shift 2 0 -1 (decided)" in printed and "scan1: left out: removed (decided)" in printed
    assert [Path(entry["image"]).name for entry in Task(tmp_path / "copy", tmp_path).description()["training"]] == [
        f"scan{number}.nii.gz" for number in (0, 2, 3)]  # fmt: skip
    assert describe["labels"] == {"0": "background", "1": "organ"}


def test_no_decision_changes_nothing(task, tmp_path):
    table = decide(task, row("scan0"), row("scan1", "keep"))
    assert verify("--data", task.folder, "--fix", tmp_path / "copy", "--decisions", table) == EXIT_OK
    for path in ("labelsTr/scan0.nii.gz", "labelsTr/scan1.nii.gz"):
        assert (tmp_path / "copy/Task77_Tiny" / path).read_bytes() == (task.folder / path).read_bytes()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("scan0", "delete"), row("scan1", "swap 1")], "scan0: 'delete' is no decision"),
        ([row("nobody", "remove")], "nobody: it is no training case"),
        ([row("scan0", "remove", label_digest="old")], "is not the file that was audited"),
        ([row("scan0", "swap 1 7")], "7 is no label value"),
        ([row("scan0", "shift a b c")], "shift needs whole numbers"),
        ([row("scan0", "replace gone.nii.gz")], "there is no file"),
        ([row("scan0", "remove"), row("scan0", "erase 1")], "cannot be removed and changed"),
        ([row("scan0", "erase 1", scope="place", where="everywhere")], "is no box"),
        ([row("scan0", "swap 0 1"), row("scan0", "Swap 1 0")], "scan0: 'Swap 1 0' is decided twice"),
        ([row("scan0", "shift 0 0 1"), row("scan0", "replace audit.csv")], "put the line with replace first"),
        ([row("scan0", "replace audit.csv"), row("scan0", "replace ./audit.csv")], "twice"),
        ([row("scan0", "replace audit.csv"), row("scan0", "replace data/../audit.csv")], "by several files"),
    ],
)
def test_decisions_that_cannot_be_carried_out_are_refused_and_nothing_is_written(task, tmp_path, capsys, rows, message):
    table = decide(task, *rows)
    assert verify("--data", task.folder, "--fix", tmp_path / "copy", "--decisions", table) == EXIT_USAGE
    assert message in capsys.readouterr().err and not (tmp_path / "copy").exists()


def test_zeros_that_a_spreadsheet_took_away_are_put_back_where_the_label_is_the_same(tmp_path):
    def case(name: str) -> CaseFiles:
        path = tmp_path / f"{name}.nii.gz"
        path.write_text(name)
        return CaseFiles(case=name, images=(path,), label=path)

    cases = [case("007"), case("8")]
    table = tmp_path / "audit.csv"
    write_audit([row("7", "remove", label_digest=file_digest(cases[0].label))], table)
    assert list(read_decisions(table, cases, LABELS)) == ["007"]
    write_audit([row("7", "remove", label_digest=file_digest(cases[1].label))], table)
    with pytest.raises(UserError, match="is not the file that was audited"):
        read_decisions(table, cases, LABELS)
    write_audit([row("7", "remove", label_digest=file_digest(cases[0].label))], table)
    with pytest.raises(UserError, match="was it renamed or removed"):
        read_decisions(table, [*cases, case("07")], LABELS)


def test_the_same_line_twice_harms_nothing_where_it_says_the_same(task):
    table = decide(
        task, row("scan0", "remove"), row("scan0", "remove"), row("scan1", "erase 1"), row("scan1", "erase 1")
    )
    cases = [CaseFiles(case=f"scan{n}", images=(), label=task.folder / f"labelsTr/scan{n}.nii.gz") for n in range(4)]
    assert set(read_decisions(table, cases, LABELS)) == {"scan0", "scan1"}


def test_decisions_need_a_copy_and_a_file(task, tmp_path, capsys):
    assert verify("--data", task.folder, "--decisions", decide(task, row())) == EXIT_USAGE
    assert "--fix FOLDER" in capsys.readouterr().err
    assert verify("--data", task.folder, "--fix", tmp_path / "c", "--decisions", tmp_path / "none.csv") == EXIT_USAGE


def test_a_faulty_case_is_repaired_and_decided_about(task, tmp_path):
    write_scan(task.folder / "imagesTr/scan0.nii.gz", np.full(SHAPE_XYZ, np.nan, np.float32))
    write_scan(
        task.folder / "imagesTr/scan1.nii.gz", np.where(np.indices(SHAPE_XYZ)[0] == 0, np.nan, 3.0).astype(np.float32)
    )
    table = decide(task, row("scan1", "erase 1"))
    assert verify("--data", task.folder, "--fix", tmp_path / "copy", "--decisions", table) == EXIT_PARTIAL


def test_a_place_is_erased_within_its_box_only():
    label = np.ones((4, 4, 4), np.uint8)
    decision = parse_decision(row(decision="erase 1", scope="place", where="0-1 0-0 3-3"), LABELS, Path())
    found = carry_out([decision], label)
    assert np.argwhere(found == 0).tolist() == [[0, 0, 3], [1, 0, 3]] and label.all()


def test_decisions_follow_one_another():
    label = np.array([1, 2, 0], np.uint8).reshape(3, 1, 1)
    steps = [
        Decision(word="swap", values=(1, 2)),
        Decision(word="shift", values=(1, 0, 0)),
        Decision(word="erase", values=(1,)),
    ]
    assert carry_out(steps, label).ravel().tolist() == [0, 2, 0]
    assert carry_out([Decision(word="shift", values=(-5, 0, 0))], label).sum() == 0


def test_a_capital_of_a_spreadsheet_says_the_same():
    assert parse_decision(row(decision="Keep"), LABELS, Path()) is None
    assert parse_decision(row(decision="Swap 1 2"), LABELS, Path()) == Decision(
        word="swap", values=(1, 2), text="Swap 1 2"
    )
