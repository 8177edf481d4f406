"""Cases are found in every notation of nnU-Net and the Decathlon: listed, listed by stem, or by file name alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_preprocessing.dataset.case_files import parse_cases, scan_files
from data_preprocessing.dataset.description_file import Dataset, load_dataset, read_description
from utils.errors import UserError

LABELS = {"background": 0, "organ": 1}


def make_folder(folder: Path, files: list[str], **content: object) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    description = {"channel_names": {"0": "T1", "1": "T2"}, "labels": LABELS} | content
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def names(dataset: Dataset, section: str = "training") -> dict[str, list[str]]:
    return {case.case: [path.name for path in case.images] for case in getattr(dataset, section)}


CHANNELS = [f"imagesTr/{case}_000{channel}.nii.gz" for case in "ab" for channel in range(2)]
V2_FILES = [*CHANNELS, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz", "imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz"]


def test_nnunet_v1_lists_the_stem_of_one_file_for_each_channel(tmp_path):
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    make_folder(tmp_path / "Task501_Toy", V2_FILES, training=[entry], test=["./imagesTs/c.nii.gz"])
    dataset = load_dataset(tmp_path, "501")
    assert names(dataset) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}
    assert names(dataset, "test") == {"c": ["c_0000.nii.gz", "c_0001.nii.gz"]}


def test_a_missing_channel_of_a_listed_stem_is_named(tmp_path):
    entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    make_folder(tmp_path / "Task501_Toy", ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], training=[entry])
    with pytest.raises(UserError, match=r"a_0001\.nii\.gz"):
        load_dataset(tmp_path, "501")


def test_a_listed_file_that_exists_is_itself_though_others_have_its_stem(tmp_path):
    entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    make_folder(tmp_path / "Task501_Toy", [*V2_FILES, "imagesTr/a.nii.gz"], training=[entry])
    assert names(load_dataset(tmp_path, "501")) == {"a": ["a.nii.gz"]}


def test_a_list_of_one_file_is_called_without_the_channel_number(tmp_path):
    entry = {"image": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    make_folder(tmp_path / "Task501_Toy", V2_FILES, training=[entry], channel_names={"0": "T1"})
    assert names(load_dataset(tmp_path, "501")) == {"a": ["a_0000.nii.gz"]}


def test_nnunet_v2_folders_list_nothing_and_are_read_by_file_name(tmp_path):
    folder = make_folder(tmp_path / "Dataset004_Toy", V2_FILES, numTraining=2, file_ending=".nii.gz")
    (folder / "imagesTr" / "._a_0000.nii.gz").touch()
    dataset = load_dataset(tmp_path, "4")
    assert (dataset.task, dataset.name) == ("04", "Dataset004_Toy")
    assert names(dataset) == {case: [f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"] for case in "ab"}
    assert [case.label for case in dataset.training] == [folder / "labelsTr/a.nii.gz", folder / "labelsTr/b.nii.gz"]
    assert names(dataset, "test") == {"c": ["c_0000.nii.gz", "c_0001.nii.gz"]}
    assert dataset.test[0].label is None


def test_nnunet_v2_labels_of_test_scans_are_taken_where_there_are_some(tmp_path):
    files = [*V2_FILES, "labelsTs/c.nii.gz"]
    folder = make_folder(tmp_path / "Dataset004_Toy", files, file_ending=".nii.gz")
    assert load_dataset(folder, "4").test[0].label == folder / "labelsTs/c.nii.gz"


def test_nnunet_v2_may_list_its_training_cases_by_name(tmp_path):
    listed = {"case_a": {"images": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}}
    make_folder(tmp_path / "Dataset004_Toy", V2_FILES, file_ending=".nii.gz", dataset=listed)
    assert names(load_dataset(tmp_path, "4")) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}


def test_nnunet_v2_files_that_are_missing_or_misnamed_are_problems(tmp_path):
    make_folder(tmp_path / "Dataset004_Toy", [*CHANNELS[1:], "labelsTr/a.nii.gz"], file_ending=".nii.gz")
    with pytest.raises(UserError, match=r"2 files that do not exist:\n.*a_0000\.nii\.gz\n.*labelsTr/b\.nii\.gz"):
        load_dataset(tmp_path, "4")
    make_folder(tmp_path / "Dataset005_Toy", [*V2_FILES, "imagesTr/d.nii.gz"], file_ending=".nii.gz")
    with pytest.raises(UserError, match=r"d\.nii\.gz has no channel number"):
        load_dataset(tmp_path, "5")


def test_a_channel_too_many_belongs_to_its_case(tmp_path):
    files = [*V2_FILES, "imagesTr/a_0002.nii.gz"]
    make_folder(tmp_path / "Dataset004_Toy", files, file_ending=".nii.gz")
    assert len(load_dataset(tmp_path, "4").training[0].images) == 3


def test_other_file_endings_are_refused_with_what_to_do(tmp_path):
    make_folder(tmp_path / "Dataset004_Toy", ["imagesTr/a_0000.mgz"], file_ending=".mgz")
    with pytest.raises(UserError, match=r"file_ending \.mgz is not read; convert"):
        load_dataset(tmp_path, "4")


def test_task_and_dataset_folders_of_one_number_are_ambiguous(tmp_path):
    make_folder(tmp_path / "Dataset004_Toy", V2_FILES, file_ending=".nii.gz")
    make_folder(tmp_path / "Task04_Toy", V2_FILES, file_ending=".nii.gz")
    with pytest.raises(UserError, match="Dataset004_Toy, Task04_Toy"):
        load_dataset(tmp_path, "4")


def test_wrong_entries_are_reported_and_the_others_are_read(tmp_path):
    entries = [{"image": f"{image}.nii.gz", "label": "labelsTr/a.nii.gz"} for image in ("../a", "imagesTr/a", "x/a")]
    make_folder(tmp_path / "Task501_Toy", V2_FILES, training=entries)
    description = read_description(tmp_path, "501")
    assert [finding.case for finding in description.findings] == ["training[0]", "training"]
    assert "leaves the folder" in description.findings[0].message
    assert description.findings[1].message == "2 cases are called 'a'"
    assert len(description.dataset.training) == 2


def test_hidden_and_other_files_are_no_scans(tmp_path):
    make_folder(tmp_path / "x", ["b.nii", "a.nii.gz", "._a.nii.gz", "notes.txt", ".nii.gz"])
    assert [path.name for path in scan_files(tmp_path / "x")] == ["a.nii.gz", "b.nii"]
    assert scan_files(tmp_path / "absent") == []


def test_endings_of_a_folder_may_be_in_capitals(tmp_path):
    files = [
        name.replace("b_0001.nii.gz", "b_0001.NII.GZ").replace("labelsTr/a.nii.gz", "labelsTr/a.NII.gz")
        for name in V2_FILES
    ]
    make_folder(tmp_path / "Dataset501_Toy", files, file_ending=".nii.gz")
    dataset = load_dataset(tmp_path, "501")
    assert names(dataset) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz", "b_0001.NII.GZ"]}
    assert dataset.training[0].label.name == "a.NII.gz"


def test_one_channel_in_two_files_is_refused(tmp_path):
    make_folder(tmp_path / "Dataset501_Toy", [*V2_FILES, "imagesTr/a_0000.NII.GZ"], file_ending=".nii.gz")
    with pytest.raises(UserError, match="are one channel of one case"):
        load_dataset(tmp_path, "501")


def test_what_a_folder_of_nnunet_leaves_out_is_said(tmp_path, capsys):
    files = [*V2_FILES, "imagesTr/more/d_0000.nii.gz", "imagesTr/e_0000.nii", "imagesTs/f_0000.nrrd"]
    make_folder(tmp_path / "Dataset501_Toy", files, file_ending=".nii.gz")
    assert len(load_dataset(tmp_path, "501").training) == 2
    printed = capsys.readouterr().err
    assert all(name in printed for name in ("imagesTr/more/", "imagesTr/e_0000.nii is", "imagesTs/f_0000.nrrd"))
    assert all(finding.is_remark for finding in read_description(tmp_path, "501").findings)


def test_a_link_that_leads_nowhere_is_a_missing_file(tmp_path):
    folder = make_folder(tmp_path / "Dataset501_Toy", V2_FILES, file_ending=".nii.gz")
    (folder / "imagesTr/a_0001.nii.gz").unlink()
    (folder / "imagesTr/a_0001.nii.gz").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"do not exist:\n  - .*a_0001\.nii\.gz"):
        load_dataset(tmp_path, "501")


@pytest.mark.parametrize("style", ["backslash", "absolute", "both"])
def test_paths_from_windows_and_whole_paths_into_the_folder_are_read(tmp_path, style):
    folder = tmp_path / "Task501_Toy"
    paths = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}
    if style != "backslash":
        paths = {key: str(folder / path) for key, path in paths.items()}
    if style != "absolute":
        paths = {key: path.replace("/", "\\") for key, path in paths.items()}
    make_folder(folder, V2_FILES, channel_names={"0": "T1"}, training=[paths])
    (case,) = load_dataset(tmp_path, "501").training
    assert (case.images, case.label) == ((folder / "imagesTr/a_0000.nii.gz",), folder / "labelsTr/a.nii.gz")


@pytest.mark.parametrize("path", ["/data/Task501_Toy/imagesTr/a_0000.nii.gz", "C:\\data\\a_0000.nii.gz"])
def test_whole_paths_to_elsewhere_say_what_to_write(tmp_path, path):
    entry = {"image": path, "label": "labelsTr/a.nii.gz"}
    make_folder(tmp_path / "Task501_Toy", V2_FILES, channel_names={"0": "T1"}, training=[entry])
    with pytest.raises(UserError, match=r"write paths relative to .*Task501_Toy, such as imagesTr/a_0000\.nii\.gz"):
        load_dataset(tmp_path, "501")


@pytest.mark.parametrize("name", ["plan", "run", "splits", "fingerprint", "inspection", "cases", "Plan"])
def test_cases_cannot_be_called_like_the_programs_files(tmp_path, name):
    entry = {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}
    files = [*entry.values(), *V2_FILES]
    other = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}
    make_folder(tmp_path / "Task501_Toy", files, channel_names={"0": "T1"}, training=[entry, other])
    with pytest.raises(UserError, match=f"a case cannot be called '{name}'"):
        load_dataset(tmp_path, "501")


def test_a_colour_picture_holds_all_channels_of_its_case(tmp_path):
    files = ["imagesTr/a_0000.png", "imagesTr/b_0000.png", "imagesTr/b_0001.png", "labelsTr/a.png", "labelsTr/b.png"]
    make_folder(tmp_path / "Dataset004_Toy", files, file_ending=".png")
    content = {"file_ending": ".png"}
    cases, findings = parse_cases(content, "training", tmp_path / "Dataset004_Toy", num_channels=3)
    assert {case.case: [path.name for path in case.images] for case in cases} == {
        "a": ["a_0000.png"], "b": ["b_0000.png", "b_0001.png", "b_0002.png"],
    }  # fmt: skip
    assert not findings
