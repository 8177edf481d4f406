"""Checkpoints whose members are not as torch writes them."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from models.file_sums import check_sums


def checkpoint() -> bytes:
    target = io.BytesIO()
    torch.save({"weights": torch.arange(12.0)}, target)
    return target.getvalue()


def packed_anew(content: bytes, packing: int, name: str, data: bytes | None = None) -> bytes:
    """The same checkpoint with one member packed, or also another one."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        for each in source.namelist():
            is_meant = each.endswith(name)
            held = source.read(each) if data is None or not is_meant else data
            archive.writestr(each, held, packing if is_meant else zipfile.ZIP_STORED)
    return target.getvalue()


@pytest.mark.parametrize("as_path", [True, False])
def test_a_sound_checkpoint_passes_and_a_damaged_one_does_not(tmp_path, as_path):
    content = bytearray(checkpoint())
    for damaged in (False, True):
        if damaged:
            content[content.index(torch.arange(12.0).numpy().tobytes()) + 5] ^= 1
        path = tmp_path / "a.ckpt"
        path.write_bytes(content)
        file = path if as_path else io.BytesIO(bytes(content))
        if damaged:
            with pytest.raises(ValueError, match=r"the checksum of .*data/0 is another one"):
                check_sums(file)
        else:
            check_sums(file)


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", ["/version", "/data.pkl", "/data/0"])
def test_packed_members_are_refused_before_torch_unpacks_them(packing, name):
    # One that unpacks to more than its file can hold took 2 GB.
    for data in (None, bytes(10**6)):
        with pytest.raises(ValueError, match=f"{name} is packed, and torch packs nothing"):
            check_sums(io.BytesIO(packed_anew(checkpoint(), packing, name, data)))
    check_sums(io.BytesIO(packed_anew(checkpoint(), zipfile.ZIP_STORED, name)))
