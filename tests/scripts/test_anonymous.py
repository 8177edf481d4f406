"""inference.py --anonymous: nothing of a patient is said, recorded, shown or part of a name, whatever goes wrong.

Everything that could tell who a patient is holds one word here, which must not be found anywhere afterwards.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from report.viewer import library_source
from tests.models.builders import make_plan, make_stage, with_spacing
from tests.models.checkpoints import save_ours
from tests.scripts.trained import SPACING, predict
from tests.tiny_task import write_scan

made_up = pytest.importorskip("tests.inference.dicom.made_up", reason="the extra dicom is not installed")
import pydicom  # noqa: E402

pytestmark = pytest.mark.slow
MARK = "Zz"
"""As short as names can be that are replaced by nothing else in a message."""
STUDY = "1.2.777777"
MARKED = {
    "PatientName": f"{MARK}^Jane", "PatientID": f"{MARK}1", "StudyDescription": f"{MARK} study", "StudyID": MARK,
    "SeriesDescription": f"{MARK} t1", "ProtocolName": f"{MARK} protocol", "PatientComments": MARK,
    "StationName": MARK, "InstitutionName": f"{MARK} clinic", "ReferringPhysicianName": f"{MARK}^Dr",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[int, Path]:
    """Number of channels -> model."""
    folder = tmp_path_factory.mktemp("models")
    for channels in (1, 2):
        (folder / str(channels)).mkdir()
        plan = with_spacing(make_plan(make_stage((8, 8, 8)), num_channels=channels), SPACING)
        save_ours(folder / str(channels) / "last.ckpt", plan)
    return {channels: folder / str(channels) / "last.ckpt" for channels in (1, 2)}


def series(folder: Path, seed: int = 0, *, study: int = 0, **changes):
    """A series whose folder, files and headers are marked."""
    stored = np.random.default_rng(seed).integers(1000, 2000, (8, 9, 10)).astype(np.int16)
    marked = {**MARKED, "SeriesInstanceUID": f"{STUDY}.{study}.{seed}.1", **changes}
    made = made_up.write_series(folder, stored, study=f"{STUDY}.{study}", number=seed, **marked)
    for path in made.files:
        path.rename(path.with_name(f"{MARK}{path.name}"))
    return made


def single_series(place: Path) -> list[str]:
    """One that is good, one with a gap, one whose voxels are cut, a damaged file and one that is no DICOM."""
    series(place / MARK)
    series(place / f"{MARK} gap", 1, leave_out=(3,))
    series(place / f"{MARK}_cut", 2)
    for path in (place / f"{MARK}_cut").iterdir():
        path.write_bytes(path.read_bytes()[:-60])
    (place / MARK / f"{MARK}.dcm").write_bytes(b"x" * 500)
    (place / f"{MARK}.txt").write_text(MARK)
    return []


def channels(place: Path) -> list[str]:
    """Studies: good, without the second channel, with two series for it, on two grids, and with a gap."""
    kinds = {"a": ["t1", "t2"], "b": ["t1"], "c": ["t1", "t2", "t2"], "d": ["t1", "t2"], "e": ["t1", "t2"]}
    for study, (kind, names) in enumerate(kinds.items()):
        for number, name in enumerate(names):
            more = {"origin": (0.0, 0.0, 100.0)} if (kind, name) == ("d", "t2") else {}
            more |= {"leave_out": (3,)} if (kind, name) == ("e", "t2") else {}
            place_of = place / f"{MARK}{kind}" / f"{MARK}{number}"
            series(place_of, number, study=study, SeriesDescription=f"{MARK} {name}", **more)
    return ["--dicom_channels", f"{MARK} t1", f"{MARK} t2"]


def table(place: Path) -> list[str]:
    """One case that is good, and one whose channels are the same series twice."""
    for number in range(2):
        series(place / MARK / f"{MARK}{number}", number)
    rows = [f"case,{MARK},T2", f"{MARK},{STUDY}.0.0.1,{STUDY}.0.1.1", f"{MARK}2,{MARK}_{MARK}0,{STUDY}.0.1.1"]
    (place.parent / f"{MARK}.csv").write_text("\n".join(rows))
    return ["--dicom_channels", str(place.parent / f"{MARK}.csv")]


def wrong_table(place: Path) -> list[str]:
    table(place)
    rows = (place.parent / f"{MARK}.csv").read_text()
    (place.parent / f"{MARK}.csv").write_text(f"{rows}\n{MARK}3,{STUDY}.9,{MARK}")
    return ["--dicom_channels", str(place.parent / f"{MARK}.csv")]


def torn_table(place: Path) -> list[str]:
    series(place / MARK)
    return ["--dicom_channels", str(place.parent / f"{MARK}.csv")]


def files(place: Path) -> list[str]:
    """A good file, an empty one, one with channels, a link to nothing, and headers that quote a patient or whose voxels
    are gone, cut short or lie in a file elsewhere."""
    place.mkdir()
    image = np.random.default_rng(0).uniform(1, 9, (12, 10, 14)).astype(np.float32)
    write_scan(place / f"{MARK}.nii.gz", image)
    (place / f"{MARK}2.nii.gz").write_bytes(b"")
    for number in range(2):
        write_scan(place / f"{MARK} 3_{number:04d}.nii.gz", image)
    pytest.importorskip("SimpleITK", reason="the extra formats is not installed")
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = "
    (place / f"{MARK}4.mhd").write_text(f"{meta}{MARK} 4.raw\n")
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nspace: LPS\nsizes: 2 2 2\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
    (place / f"{MARK}5.nhdr").write_text(f"{nrrd}encoding: raw\ndata file: {MARK}/{MARK} 5.raw\n")
    (place / f"{MARK}6.png").write_bytes(b"x")
    (place / f"{MARK}7.nhdr").write_text(f"{nrrd}encoding: gzip\ndata file: {MARK} 7.gz\n")
    (place / f"{MARK} 7.gz").write_bytes(gzip.compress(b"xxxx"))
    (place / f"{MARK}8.nrrd").write_text(f"{nrrd.replace('uchar', MARK)}encoding: raw\n\n12345678")
    (place / f"{MARK}9.mhd").write_text(f"Patient{MARK} = {MARK}\n{meta}{MARK} 9.raw\n")
    (place / f"{MARK}10.nii.gz").symlink_to(place / f"gone {MARK}.nii.gz")
    return []


def files_here(place: Path) -> list[str]:
    """The same, by a name that they are called without."""
    return ["--input", ".", *files(place)]


def one_case_twice(place: Path) -> list[str]:
    files(place)
    shutil.copy(place / f"{MARK}.nii.gz", place / f"{MARK}2.nii.gz")
    shutil.copy(place / f"{MARK}.nii.gz", place / f"{MARK}.nii")
    return []


def nothing(place: Path) -> list[str]:
    return []


def no_scan(place: Path) -> list[str]:
    (place / MARK).mkdir(parents=True)
    (place / f"{MARK}.txt").write_text("x")
    return []


def broken_map(place: Path) -> list[str]:
    series(place / MARK)
    (place.parent / f"{MARK}.json").write_text("[]")
    return ["--anonymous_map", str(place.parent / f"{MARK}.json")]


def dicom_seg(place: Path) -> list[str]:
    """A good series, one of several frames of reference, and one with values that no other file may have."""
    series(place / MARK)
    torn = series(place / f"{MARK}3", 2).files[0]
    data = pydicom.dcmread(torn.with_name(f"{MARK}{torn.name}"))
    data.FrameOfReferenceUID = f"{STUDY}.5"
    data.save_as(torn.with_name(f"{MARK}{torn.name}"))
    for path in series(place / f"{MARK}2", 1).files:
        path = path.with_name(f"{MARK}{path.name}")
        data = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            data.PatientBirthDate, data.StudyDate, data.StudyTime, data.PatientID = MARK, f"{MARK}day", MARK, MARK * 99
            data.save_as(path)
    return ["--output_format", "dicom-seg"]


def archive(place: Path, *extra: str) -> list[str]:
    """A zip of a marked name with marked names in it."""
    series(place / MARK)
    with zipfile.ZipFile(place.parent / f"{MARK} in.zip", "w") as made:
        for path in sorted((place / MARK).iterdir()):
            made.write(path, f"{MARK}/{path.name}")
        for name in extra:
            made.writestr(name, b"x")
    return ["--input", str(place.parent / f"{MARK} in.zip")]


def unsafe_archive(place: Path) -> list[str]:
    return archive(place, f"../{MARK}")


def damaged_archive(place: Path) -> list[str]:
    words = archive(place)
    content = Path(words[1]).read_bytes()
    # The names in front of the files differ from those at the end then.
    Path(words[1]).write_bytes(content.replace(f"{MARK}/{MARK}IM001".encode(), f"{MARK}/{MARK}IM00X".encode(), 1))
    return words


CASES = {
    single_series: (1, 1, 1), channels: (2, 1, 1), table: (2, 0, 2), wrong_table: (2, 2, 0), torn_table: (2, 2, 0),
    files: (1, 1, 1), files_here: (1, 1, 1), one_case_twice: (1, 2, 0), nothing: (1, 2, 0), no_scan: (1, 2, 0),
    broken_map: (1, 2, 0),
    dicom_seg: (1, 1, 2), archive: (1, 0, 1), unsafe_archive: (1, 2, 0), damaged_archive: (1, 2, 0),
}  # fmt: skip
"""What makes the input -> channels of the model, exit status, masks."""


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_nothing_of_a_patient_is_left(models, tmp_path, capfd, monkeypatch, make):
    num_channels, status, num_masks = CASES[make]
    place, output = tmp_path / f"{MARK} in", tmp_path / "out"
    words = ["--output", output, "--model", models[num_channels], "--anonymous"]
    more = make(place)
    words += more if "--input" in more else ["--input", place, *more]
    # One page is enough: it takes its time.
    words += [] if make is single_series else ["--no_report"]
    monkeypatch.setattr("sys.argv", ["inference.py", *map(str, words)])
    if place.is_dir():
        monkeypatch.chdir(place)
    found = predict(*words)
    captured = capfd.readouterr()
    assert found == status, captured.err
    said = captured.out + captured.err
    assert "Traceback" not in said
    assert_unmarked(said, "what is said")
    written = [path for path in output.rglob("*") if path.is_file()] if output.exists() else []
    for path in written:
        assert_unmarked(str(path.relative_to(output)), "the name of a file")
        assert_unmarked(content_of(path), path.name)
    assert len([path for path in written if path.name.startswith("scan_") and ".json" not in path.name]) == num_masks
    if status != 2:
        assert json.loads((output / "run.json").read_text())["outcome"]["written"] == num_masks


def assert_unmarked(text: str, where: str) -> None:
    for word in (MARK, STUDY, "777777"):
        at = text.find(word)
        assert at < 0, f"{where}: ...{text[max(0, at - 200) : at + 100]}..."


def content_of(path: Path) -> str:
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    text = content.decode("latin-1")
    if path.suffix == ".html":
        return re.sub("[A-Za-z0-9+/=]{80,}", unpacked, text)
    # A segmentation refers to its source by UIDs.
    return text.replace(STUDY, "") if path.suffix == ".dcm" else text


def unpacked(coded: re.Match[str]) -> str:
    """A volume of a page; pictures and scripts hold any pair of letters by chance."""
    content = base64.b64decode(coded[0] + "=" * (-len(coded[0]) % 4))
    text = gzip.decompress(content).decode("latin-1") if content.startswith(b"\x1f\x8b") else ""
    return text.replace(library_source().encode().decode("latin-1"), "")
