"""A task folder is made from scans that lie around, whole or not at all, and what voxels tell is not asked."""

from __future__ import annotations

import pytest

from data_preprocessing.dataset.builder import Sources, choose_folder, collect, faults_of, name_channels, name_values
from data_preprocessing.dataset.findings import Finding
from data_preprocessing.dataset.verification import CaseSurvey, ScanFacts
from utils.errors import UserError


def facts(*minima: float, whole: bool = True, digest: str | None = None) -> ScanFacts:
    return ScanFacts(
        shape=(1, 2, 3), spacing_mm=(1.0, 1.0, 1.0), orientation="RAS", minima=minima, is_whole=(whole,) * len(minima),
        digest=digest,
    )  # fmt: skip


def survey(scan: ScanFacts | None, *values: int, case: str = "a", findings: tuple[Finding, ...] = ()) -> CaseSurvey:
    return CaseSurvey(
        case=case, section="training", findings=findings, scan=scan, label_counts=dict.fromkeys(values, 1),
        label_digest=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scans", "name"),
    [
        ([facts(-1024)], "CT"),
        ([facts(-1024), facts(-50)], "CT"),
        ([facts(-1024), facts(0), facts(0)], "channel_0"),
        ([facts(-1024, whole=False)], "channel_0"),
        ([facts(-200)], "channel_0"),
    ],
)
def test_whole_numbers_below_minus_200_are_ct(scans, name):
    problems: list[Finding] = []
    names, remarks = name_channels([survey(scan) for scan in scans], (), problems)
    assert names == (name,) and len(remarks) == 1 and problems == []


def test_given_names_are_kept_and_doubted():
    problems: list[Finding] = []
    assert name_channels([survey(facts(-1000, 0))], ("ct", "PET"), problems) == (("ct", "PET"), [])
    names, remarks = name_channels([survey(facts(-1000, 0))], ("MR", "CT"), problems)
    assert names == ("MR", "CT") and problems == []
    assert "looks like CT" in remarks[0] and "does not look like CT" in remarks[1]


def test_names_that_choose_another_normalisation_are_not_doubted():
    problems: list[Finding] = []
    names = ("noNorm", "zscore", "rescale_to_0_1")
    assert name_channels([survey(facts(-1000, -1000, -1000))], names, problems) == (names, [])


def test_more_names_than_channels_is_a_problem():
    problems: list[Finding] = []
    name_channels([survey(facts(0))], ("a", "b"), problems)
    assert "2 names of channels (a, b), and the images have 1" in problems[0].message


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ((), {0: "background", 1: "label_1", 4: "label_4"}),
        (("background", "liver", "tumour"), {0: "background", 1: "liver", 4: "tumour"}),
        (("liver", "tumour"), {0: "background", 1: "liver", 4: "tumour"}),
    ],
)
def test_values_are_named_in_ascending_order(given, names):
    problems: list[Finding] = []
    assert name_values([survey(facts(0), 4), survey(facts(0), 0, 1)], given, problems) == names
    assert problems == []


@pytest.mark.parametrize(
    ("values", "given"),
    [
        ((0,), ()),
        ((0, 1), ("a", "b", "c")),
        ((0, 1), ("a", "b")),
        ((0, 1, 2), ("background", "a")),
        ((0, 1, 2), ("a", "a")),
    ],
)
def test_names_that_do_not_fit_the_values_are_a_problem(values, given):
    problems: list[Finding] = []
    name_values([survey(facts(0), *values)], given, problems)
    assert [problem.kind for problem in problems] == ["labels"]


def test_scans_with_other_channels_label_values_or_the_same_voxels_are_unfit():
    labels = Finding(kind="labels", message="x", case="c")
    remark = Finding(kind="shape", message="x", case="a", is_remark=True)
    surveys = [
        survey(facts(0, digest="1"), findings=(remark,)),
        survey(facts(0, 0, digest="2"), case="b"),
        survey(facts(0, digest="1"), 0, 300, case="c", findings=(labels,)),
    ]
    assert [(f.case, f.kind) for f in faults_of(surveys)] == [("b", "channels"), ("c", "labels"), ("c", "duplicate")]
    assert "300" in faults_of(surveys)[1].message


def sources(root) -> Sources:
    return Sources(images=(str(root / "img"),), labels=(str(root / "img/*_seg.nii"),))


def test_labels_may_lie_among_the_images(tmp_path):
    (tmp_path / "img").mkdir()
    for name in ("a_ct", "a_seg", "b_ct", "b_seg"):
        (tmp_path / f"img/{name}.nii").touch()
    collection = collect(sources(tmp_path), ())
    assert [(c.case, c.images[0].name, c.label.name) for c in collection.training] == [
        ("a", "a_ct.nii", "a_seg.nii"), ("b", "b_ct.nii", "b_seg.nii"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("patient", "ending", "channels", "label"),
    [
        ("BraTS2021_0000{}", "_{}", ("flair", "t1", "t1ce", "t2"), "seg"),
        ("BraTS-GLI-0000{}-000", "-{}", ("t2f", "t1n", "t1c", "t2w"), "seg"),
    ],
    ids=["2021", "2023"],
)
def test_a_brats_download_needs_no_renaming(tmp_path, patient, ending, channels, label):
    names = [patient.format(number) for number in range(4)]
    for number, name in enumerate(names):
        folder = tmp_path / ("val" if number == 3 else "train") / name
        folder.mkdir(parents=True)
        for word in (*channels, *([label] if number < 3 else [])):
            (folder / f"{name}{ending.format(word)}.nii.gz").touch()
    labels = f"{tmp_path}/train/*/*{ending.format(label)}.nii.gz"
    given = Sources(images=(f"{tmp_path}/train",), labels=(labels,), test_images=(f"{tmp_path}/val",))
    collection = collect(given, channels)
    assert collection.channels == channels
    assert [files.case for files in (*collection.training, *collection.test)] == names
    for files in (*collection.training, *collection.test):
        assert [path.name for path in files.images] == [f"{files.case}{ending.format(c)}.nii.gz" for c in channels]
    assert all(files.label.name == f"{files.case}{ending.format(label)}.nii.gz" for files in collection.training)


def test_all_faults_of_the_names_come_at_once(tmp_path):
    (tmp_path / "img").mkdir()
    for name in ("a_ct", "a_seg", "b_ct", "b_seg", "c_ct", "d_seg"):
        (tmp_path / f"img/{name}.nii").touch()
    given = Sources(images=(f"{tmp_path}/img",), labels=(f"{tmp_path}/img/*_seg.nii",), test_images=("nowhere",))
    with pytest.raises(UserError) as error:
        collect(given, ())
    for words in ("c_ct.nii has no label", "d_seg.nii has no image", "--test_images nowhere"):
        assert words in str(error.value)


def test_names_that_become_the_same_are_refused(tmp_path):
    (tmp_path / "img").mkdir()
    for name in ("a b_ct", "a b_seg", "a_b_ct", "a_b_seg"):
        (tmp_path / f"img/{name}.nii").touch()
    with pytest.raises(UserError, match="2 cases would be called 'a_b'"):
        collect(sources(tmp_path), ())


def test_a_name_gets_the_next_free_number(tmp_path):
    assert choose_folder(tmp_path / "Liver", sources(tmp_path)).name == "Task11_Liver"
    for name in ("Task04_Hippocampus", "Task11_Liver", "Dataset012_Brain"):
        (tmp_path / name).mkdir()
    assert choose_folder(tmp_path / "My liver", sources(tmp_path)) == tmp_path / "Task13_My_liver"
    assert choose_folder(tmp_path / "Task63_Cord", sources(tmp_path)) == tmp_path / "Task63_Cord"


def test_folders_that_are_full_or_among_the_scans_are_refused(tmp_path):
    (tmp_path / "img/Task12_X").mkdir(parents=True)
    for place, words in (("img/Task12_X", "lies inside"), ("img/Y", "lies inside"), ("Task1000_X", "three digits")):
        with pytest.raises(UserError, match=words):
            choose_folder(tmp_path / place, sources(tmp_path))
    (tmp_path / "Task12_X").mkdir()
    choose_folder(tmp_path / "Task12_X", sources(tmp_path))
    (tmp_path / "Task12_X/file").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        choose_folder(tmp_path / "Task12_X", sources(tmp_path))


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_capitals_sub_folders_and_linked_folders_are_found(tmp_path):
    touch(tmp_path, "images/a.NII.GZ", "images/sub/b.nii", "elsewhere/c.nii.gz")
    touch(tmp_path, "labels/a.nii.gz", "labels/sub/b.nii.gz", "labels/more/c.nii.gz")
    (tmp_path / "images/more").symlink_to(tmp_path / "elsewhere")
    found = collect(Sources(images=(str(tmp_path / "images"),), labels=(str(tmp_path / "labels"),)), ())
    assert {case.case: case.images[0].name for case in found.training} == {
        "a": "a.NII.GZ", "b": "b.nii", "c": "c.nii.gz",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"), [("gone", "is a link that leads nowhere"), ("run", "cannot be called 'run'")]
)
def test_dangling_links_and_reserved_names_are_refused(tmp_path, name, reason):
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", f"labels/{name}.nii.gz")
    if name == "gone":
        (tmp_path / "images/gone.nii.gz").symlink_to(tmp_path / "nowhere")
    else:
        touch(tmp_path, f"images/{name}.nii.gz")
    with pytest.raises(UserError, match=reason):
        collect(Sources(images=(str(tmp_path / "images"),), labels=(str(tmp_path / "labels"),)), ())
