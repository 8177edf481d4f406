"""dataset.json is read in both notations, every problem in it is named, and folds are the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_preprocessing.dataset.case_files import CaseFiles, case_name
from data_preprocessing.dataset.description_file import load_dataset, make_splits
from utils.errors import UserError
from utils.schema import LabelScheme

DESCRIPTION = {
    "modality": {"0": "CT", "1": "PET"},
    "labels": {"0": "background", "1": "tumour"},
    "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in ("b", "a")],
    "test": ["./imagesTs/c.nii.gz"],
}


def make_task(root: Path, *, name: str = "Task07_Toy", missing: tuple[str, ...] = (), **changes: object) -> Path:
    """A task folder whose scans are empty files; a change of None takes the key out."""
    content = {key: value for key, value in (DESCRIPTION | changes).items() if value is not None}
    (root / name).mkdir()
    (root / name / "dataset.json").write_text(json.dumps(content))
    for path in ("imagesTr/a", "imagesTr/b", "imagesTs/c", "labelsTr/a", "labelsTr/b"):
        if path not in missing:
            file = root / name / f"{path}.nii.gz"
            file.parent.mkdir(exist_ok=True)
            file.touch()
    return root / name


def complaint(root: Path, **changes: object) -> str:
    make_task(root, **changes)
    with pytest.raises(UserError) as error:
        load_dataset(root, "07")
    return str(error.value)


def test_a_decathlon_task_is_read_as_written(tmp_path):
    folder = make_task(tmp_path)
    dataset = load_dataset(tmp_path, "7")
    assert (dataset.task, dataset.name, dataset.folder) == ("07", "Task07_Toy", folder)
    assert dataset.channels == ("CT", "PET")
    assert dataset.labels == LabelScheme(names=("background", "tumour"), values=(0, 1))
    assert [case.case for case in dataset.training] == ["b", "a"]
    assert dataset.training[1].images == (folder / "imagesTr/a.nii.gz",)
    assert dataset.training[1].label == folder / "labelsTr/a.nii.gz"
    assert dataset.test == (CaseFiles(case="c", images=(folder / "imagesTs/c.nii.gz",), label=None),)


def test_the_folder_itself_is_as_good_as_the_one_above(tmp_path, monkeypatch):
    folder = make_task(tmp_path)
    assert load_dataset(folder, "07") == load_dataset(tmp_path, "07")
    monkeypatch.chdir(folder)
    assert load_dataset(Path("."), "07").name == "Task07_Toy"


def test_channels_are_ordered_by_number_not_by_text(tmp_path):
    make_task(tmp_path, modality={str(n): f"m{n}" for n in (10, *range(10))})
    assert load_dataset(tmp_path, "07").channels == tuple(f"m{n}" for n in range(11))


def test_nnunet_notation_with_a_file_for_each_channel(tmp_path):
    training = [{"image": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}]
    folder = make_task(
        tmp_path, modality=None, channel_names={"0": "T1", "1": "T2"}, labels={"background": 0, "tumour": 1},
        training=training, test=[{"image": "imagesTs/c.nii.gz", "label": "labelsTr/b.nii.gz"}],
    )  # fmt: skip
    for channel in range(2):
        (folder / f"imagesTr/a_000{channel}.nii.gz").touch()
    dataset = load_dataset(tmp_path, "07")
    assert dataset.training[0].case == "a" and len(dataset.training[0].images) == 2
    assert dataset.test[0].label == folder / "labelsTr/b.nii.gz"
    assert dataset.channels == ("T1", "T2")


def test_brats_is_a_label_scheme_of_regions(tmp_path):
    make_task(tmp_path, labels={"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"})
    assert load_dataset(tmp_path, "07").labels.regions == ()
    assert load_dataset(tmp_path, "07", brats=True).labels.target_names == ("WT", "TC", "ET")


@pytest.mark.parametrize("absent", ["training", "test"])
def test_training_or_test_may_be_absent(tmp_path, absent):
    make_task(tmp_path, **{absent: None})
    assert getattr(load_dataset(tmp_path, "07"), absent) == ()


def test_neither_training_nor_test_is_a_problem(tmp_path):
    assert "neither 'training' nor 'test'" in complaint(tmp_path, training=[], test=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modality": None}, "'modality'"),
        ({"modality": {"1": "CT"}}, "numbered 0, 1"),
        ({"modality": {}}, "numbered 0, 1"),
        ({"modality": {"0": 3}}, "'modality'"),
        ({"labels": None}, "'labels'"),
        ({"labels": {"1": "tumour"}}, "called 'background'"),
        ({"training": "all"}, "'training' must be a list"),
        ({"training": [{"image": "imagesTr/a.nii.gz"}]}, r"training[0]: a case needs"),
        ({"training": ["imagesTr/a.nii.gz"]}, r"training[0]: a case needs"),
        ({"test": [{"image": []}]}, "test[0]: no image"),
        ({"test": [7]}, "test[0]: a case needs"),
        ({"test": ["/etc/passwd.nii"]}, "leaves the folder"),
        ({"test": ["../Task08_Other/a.nii.gz"]}, "leaves the folder"),
        ({"test": ["imagesTs/../../x.nii.gz"]}, "leaves the folder"),
        ({"test": ["imagesTs/c.jpg"]}, "imagesTs/c.jpg is no scan"),
        ({"test": ["imagesTs/.nii.gz"]}, "is no scan"),
        ({"test": ["imagesTs/c.nii.gz", "imagesTr/c.nii"]}, "2 cases are called 'c'"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(tmp_path, changes, words):
    message = complaint(tmp_path, **changes)
    assert words in message and "dataset.json" in message


def test_all_problems_come_at_once(tmp_path):
    message = complaint(tmp_path, modality={}, labels={"1": "x"}, test=["../a.nii", "b.jpg"])
    assert message.count("\n  - ") == 4


def test_all_missing_files_come_at_once(tmp_path):
    message = complaint(tmp_path, missing=("imagesTr/a", "labelsTr/b"))
    assert "2 files that do not exist" in message
    assert "imagesTr/a.nii.gz" in message and "labelsTr/b.nii.gz" in message and "imagesTr/b" not in message


@pytest.mark.parametrize("content", ["{", "[]", "\x00", '"text"'])
def test_a_malformed_description_is_refused_by_name(tmp_path, content):
    (make_task(tmp_path) / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        load_dataset(tmp_path, "07")


def test_a_missing_description_folder_or_task_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_dataset(tmp_path / "nowhere", "07")
    folder = make_task(tmp_path)
    with pytest.raises(UserError, match=r"no folder Task08_<Name>; it has Task07_Toy"):
        load_dataset(tmp_path, "08")
    (folder / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"dataset\.json does not exist"):
        load_dataset(tmp_path, "07")
    make_task(tmp_path, name="Task007_Other")
    with pytest.raises(UserError, match="several folders for task 07: Task007_Other, Task07_Toy"):
        load_dataset(tmp_path, "07")


# What scikit-learn 1.7 gives for KFold(n, shuffle=True, random_state=12345).
KFOLD_10_IN_5 = [[0, 7], [3, 9], [4, 6], [1, 8], [2, 5]]
KFOLD_7_IN_3 = [[3, 4, 6], [0, 1], [2, 5]]
KFOLD_208_IN_5_BEGINS = [[14, 16, 17, 19], [2, 10, 24, 26], [4, 8, 9, 13], [0, 3, 5, 6], [1, 7, 11, 23]]


@pytest.mark.parametrize(("num_cases", "expected"), [(10, KFOLD_10_IN_5), (7, KFOLD_7_IN_3)])
def test_folds_are_those_of_scikit_learn(num_cases, expected):
    names = [f"case{index}" for index in range(num_cases)]
    folds = make_splits(names[::-1], len(expected)).folds
    assert [fold.val for fold in folds] == [tuple(names[i] for i in part) for part in expected]
    assert all(tuple(sorted(fold.train + fold.val)) == tuple(names) for fold in folds)


def test_the_first_folds_take_the_remainder():
    folds = make_splits([f"{index:03d}" for index in range(208)], 5).folds
    assert [len(fold.val) for fold in folds] == [42, 42, 42, 41, 41]
    assert [[int(case) for case in fold.val[:4]] for fold in folds] == KFOLD_208_IN_5_BEGINS


@pytest.mark.parametrize("num_cases", [0, 1])
def test_no_fold_can_be_made_of_less_than_two_cases(num_cases):
    with pytest.raises(UserError, match=f"{num_cases} training cases: .* Add labelled cases to dataset.json"):
        make_splits([f"case_{i}" for i in range(num_cases)], 5)


@pytest.mark.parametrize("num_cases", [2, 4])
def test_fewer_cases_than_folds_is_refused_with_the_number(num_cases):
    with pytest.raises(UserError, match=f"{num_cases} training cases cannot make 5 folds"):
        make_splits([str(index) for index in range(num_cases)], 5)


@pytest.mark.parametrize(
    ("path", "name"), [("x/a.nii.gz", "a"), ("a.b.nii", "a.b"), ("a.nii.gz.nii", "a.nii.gz"), ("anii", "anii")]
)
def test_a_case_is_called_after_its_file(path, name):
    assert case_name(path) == name


def test_real_tasks_are_read_without_a_complaint(real_data):
    for task, channels, cases in (("04", 1, 208), ("51", 1, 9), ("53", 3, 6), ("56", 4, 2), ("63", 1, 3)):
        dataset = load_dataset(real_data, task)
        assert (len(dataset.channels), len(dataset.training)) == (channels, cases)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_mark_of_the_encoding_does_not_matter(tmp_path, encoding):
    (tmp_path / "Task42_Own/imagesTs").mkdir(parents=True)
    (tmp_path / "Task42_Own/imagesTs/a.nii.gz").touch()
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Größe"}, "test": ["imagesTs/a.nii.gz"]}
    text = json.dumps(content, ensure_ascii=False)
    (tmp_path / "Task42_Own/dataset.json").write_text(text, encoding=encoding)
    assert load_dataset(tmp_path, "042").labels.names == ("background", "Größe")
