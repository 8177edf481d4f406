"""nnunet audit-labels after a cross-validation: table, page, decisions, and messages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cross_validation.records import CaseRecord, FoldRecord, RunRequest, mask_digest, plan_digest
from data_preprocessing.planning.adapt import read_folds
from data_preprocessing.shards import shard_stamps
from scripts import audit_labels, verify_dataset
from tests.tiny_task import Task, make_task, write_scan
from utils.errors import EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, run_cli
from utils.files import read_json, write_json
from utils.label_audit import AuditRow, read_audit, write_audit
from utils.nifti import read_label
from utils.schema import Fold, Plan
from utils.scoring import class_indices

NUMBER, WRONG = 9, "scan4"


@pytest.fixture
def task(tmp_path) -> Task:
    """Preprocessed cases, one with a shifted label, and what networks that see the truth predicted of them."""
    made = make_task(tmp_path, num_cases=NUMBER)
    folder = tmp_path / "models/77_3d_fullres/out_of_fold"
    folder.mkdir(parents=True)
    for number in range(NUMBER):
        path = made.folder / f"labelsTr/scan{number}.nii.gz"
        truth = np.asanyarray(nib.load(path).dataobj)
        noise = np.random.default_rng(number).normal(0, 0.02, truth.shape)
        inside = np.clip(ndimage.gaussian_filter(truth.astype(float), 0.7) + noise, 0.01, 0.99).astype(np.float32)
        write_scan(folder / f"scan{number}.nii.gz", (inside > 0.5).astype(np.uint8))
        np.save(folder / f"scan{number}.npy", np.stack([1 - inside, inside]).swapaxes(-1, -3))
        if f"scan{number}" == WRONG:
            write_scan(path, np.roll(truth, 3, 1))
    assert made.run("--nfolds", "3") == EXIT_OK
    (folder / "plan.json").write_bytes((made.results / "77_3d/plan.json").read_bytes())
    for number, cases in enumerate(read_folds(made.results / "77_3d")):
        record(made, number, cases)
    return made


def record(task: Task, number: int, cases: Fold, **changes: object) -> None:
    """What a fold writes when it has ended."""
    shards, folder = task.results / "77_3d", task.data.parent / f"models/77_3d_fullres/fold_{number}"
    plan = read_json(Plan, shards / "plan.json")
    request = RunRequest(
        version=1, configuration="3d_fullres", fold=number, num_folds=3, cases=cases, options={},
        plan=plan_digest(plan), data=shard_stamps(shards, {*cases.train, *cases.val}),
    )  # fmt: skip
    request = dataclasses.replace(request, **changes)
    records = []
    for case in cases.val:
        mask = folder.parent / f"out_of_fold/{case}.nii.gz"
        found = class_indices(read_label(mask).array, plan.labels, mask)
        records.append(CaseRecord(case=case, mask=mask_digest(found), dice=(0.9,)))
    folder.mkdir(exist_ok=True)
    write_json(request, folder / "options.json")
    done = FoldRecord(version=1, request=request.digest, configuration="3d_fullres", fold=number, num_folds=3,
                      targets=("organ",), epochs=1, train_s=1.0, seconds=1.0, cases=tuple(records))  # fmt: skip
    write_json(done, folder / "done.json")


def audit(task: Task, *flags: object) -> int:
    results = task.data.parent / "models"
    argv = ["--task", "77", "--data", task.results, "--results", results, "--n_jobs", "1", *flags]
    return run_cli(lambda: audit_labels.main([str(word) for word in argv]))


@pytest.mark.slow
def test_the_wrong_label_comes_first_and_is_put_right_in_a_copy(task, tmp_path, capsys):
    before = {path: path.read_bytes() for path in task.data.rglob("*") if path.is_file()}
    truth = np.roll(np.asanyarray(nib.load(task.folder / f"labelsTr/{WRONG}.nii.gz").dataobj), -3, 1)
    assert audit(task, "--no_report") == EXIT_OK
    printed = capsys.readouterr().out
    assert f"! {WRONG}" in printed and f"1 of {NUMBER} labels are suspicious" in printed
    table = tmp_path / "models/77_audit/audit.csv"
    rows = [row for row in read_audit(table) if row.scope == "case"]
    assert [row.case for row in rows if row.suspicious] == [WRONG] == [rows[0].case] and len(rows) == NUMBER
    assert (rows[0].kind, rows[0].suggestion, rows[0].decision) == ("shifted", "shift 0 -3 0", "")
    details = json.loads((table.parent / "audit.json").read_text())
    assert details["cases"][0]["case"] == WRONG and details["configuration"] == "3d_fullres"
    lines = table.read_text().splitlines()
    decided = lines[1].replace("shift 0 -3 0,,", "shift 0 -3 0,shift 0 -3 0,")
    assert decided != lines[1]
    table.write_text("\n".join([lines[0], decided, *lines[2:]]))
    argv = ["--data", task.folder, "--fix", tmp_path / "copy", "--decisions", table, "--n_jobs", "1"]
    assert run_cli(lambda: verify_dataset.main([str(word) for word in argv])) == EXIT_PARTIAL
    fixed = nib.load(tmp_path / f"copy/Task77_Tiny/labelsTr/{WRONG}.nii.gz")
    assert np.array_equal(np.asanyarray(fixed.dataobj), truth)
    assert {path: path.read_bytes() for path in task.data.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_without_predictions_the_command_that_gathers_them_is_named(task, tmp_path, capsys):
    (tmp_path / "models/77_3d_fullres/out_of_fold/scan2.npy").unlink()
    assert audit(task) == EXIT_USAGE
    assert "scan2" in (message := capsys.readouterr().err) and "cross_validate.py" in message
    (tmp_path / "models/77_3d_fullres/out_of_fold/plan.json").unlink()
    assert audit(task) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "gathers them" in message and "cross_validate.py --task 77 --configurations 3d_fullres" in message
    assert audit(task, "--configuration", "2d") == EXIT_USAGE
    assert not (tmp_path / "models/77_audit").exists()


def swap_files(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.slow
def test_predictions_of_other_networks_folds_plans_and_labels_are_refused(task, tmp_path, capsys):
    models = tmp_path / "models/77_3d_fullres"
    folds = read_folds(task.results / "77_3d")

    def refused() -> str:
        assert audit(task, "--no_report") == EXIT_USAGE and not list(tmp_path.glob("models/77_audit/*"))
        return capsys.readouterr().err

    for ending, message in (
        (".nii.gz", "is not the mask that its fold predicted"),
        (".npy", "are not the probabiliti"),
    ):
        pair = [models / f"out_of_fold/scan{number}{ending}" for number in (0, 1)]
        swap_files(*pair)
        assert "scan0" in (said := refused()) and "scan1" in said and message in said
        swap_files(*pair)
    mixed = Fold(train=folds[0].train[1:] + folds[0].val[:1], val=folds[0].val)
    record(task, 0, mixed)
    assert f"the network of fold_0 learned from 1 case ({folds[0].val[0]}), which it predicted" in refused()
    record(task, 0, Fold(train=folds[0].train[1:], val=(*folds[0].val, folds[0].train[0])))
    assert f"several folds predicted 1 case ({folds[0].train[0]})" in refused()
    record(task, 0, folds[0], plan="another")
    assert "plan.json is not the plan of fold_0" in refused()
    record(task, 0, folds[0], data={folds[0].val[0]: "another"})
    assert f"the preprocessed data of 1 case ({folds[0].val[0]}) have changed since" in refused()
    (models / "fold_0/done.json").unlink()
    assert "fold_0 is not finished" in (said := refused()) and f"predicted {len(folds[0].val)} cases" in said
    record(task, 0, folds[0])
    label = task.folder / "labelsTr/scan3.nii.gz"
    write_scan(label, np.asanyarray(nib.load(label).dataobj) * 0)
    assert "scan3.nii.gz has changed since" in refused()


def test_damaged_probabilities_are_all_named(tmp_path):
    from cross_validation.audit.run import look_at

    assert "cannot be read" in str(look_at("a", folder=tmp_path, labels={"a": Path("a.nii.gz")}, masks={"a": ""}))


def test_another_audit_keeps_what_a_person_has_decided(tmp_path, capsys):
    from cross_validation.audit.run import keep_decisions

    table = tmp_path / "audit.csv"
    keep_decisions(table)
    open_row = AuditRow(
        rank=1, case="a", scope="case", score=9.0, suspicious=True, kind="shifted", structure="organ",
        where="3-5 3-6 2-4", suggestion="", decision="", label="a.nii.gz", label_digest="1f",
    )  # fmt: skip
    decided = dataclasses.replace(open_row, decision="erase 1")
    write_audit([decided, open_row], table)
    for number in (1, 2):
        keep_decisions(table)
        assert not table.exists() and read_audit(tmp_path / f"audit_{number}.csv")[0] == decided
        assert f"kept as audit_{number}.csv" in capsys.readouterr().out
        write_audit([decided], table)
    write_audit([open_row], table)
    keep_decisions(table)
    assert table.is_file() and not capsys.readouterr().out
