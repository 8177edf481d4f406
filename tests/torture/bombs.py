"""Files made to do harm: small ones that promise 2^40 voxels or unpack without an end, and ones that hold commands."""

from __future__ import annotations

import functools
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

EXECUTED = Path("/tmp/torture_executed")
"""File that a command within a file would leave."""
_CODE = f"cposix\nsystem\n(S'touch {EXECUTED}'\ntR.".encode()
"""A pickle that runs a command where it is read."""
_HUGE = 1 << 40
Bomb = Callable[[bytes], bytes]


def bombs_of(target: str) -> Mapping[str, Bomb]:
    """What a file of a target of the fuzzing is replaced by: words -> the bomb, from the bytes of the sound file."""
    return _BOMBS.get(target, {})


def _shape(*sizes: int, content: bytes) -> bytes:
    """A NIfTI-1 whose header promises another shape."""
    data = bytearray(gzip.decompress(content))
    struct.pack_into("<8h", data, 40, len(sizes), *sizes, *(1,) * (7 - len(sizes)))
    return gzip.compress(bytes(data), 1)


def _nifti2(content: bytes) -> bytes:
    """A NIfTI-2, whose sizes have 64 bits."""
    header = bytearray(540)
    struct.pack_into("<i8s2h", header, 0, 540, b"n+2\0\r\n\x1a\n", 16, 32)
    struct.pack_into("<8q", header, 16, 3, _HUGE, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<8d", header, 104, *(1.0,) * 8)
    struct.pack_into("<q", header, 168, 544)
    return gzip.compress(bytes(header) + bytes(1000), 1)


@functools.cache
def _zeros(number: int) -> bytes:
    """A deflated stream of so many zeros, without its head."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(number >> 20)), packer.flush()])


def _endless_gzip(content: bytes) -> bytes:
    """The sound file, and 4 GB of zeros behind it."""
    return content + b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + _zeros(4 << 30) + struct.pack("<2I", 0, 0)


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return file.getvalue()


def _code_in_zip(content: bytes) -> bytes:
    return _zip({name: _CODE if name.endswith("data.pkl") else each for name, each in _members(content).items()})


def _code_only(content: bytes) -> bytes:
    return _CODE


def _broad_tensors(content: bytes) -> bytes:
    """Weights of 2^40 values each, which lie in the file as one."""
    # Imported here: mutators and bombs need nothing of the program otherwise.
    from inference.nnunet_v2.checkpoint import load_tensors

    checkpoint, file = load_tensors(io.BytesIO(content), "the sound checkpoint"), io.BytesIO()
    weights = next(key for key in ("state_dict", "network_weights") if key in checkpoint)
    checkpoint[weights] = {name: torch.zeros(1).expand(_HUGE) for name in checkpoint[weights]}
    torch.save(checkpoint, file)
    return file.getvalue()


def _promising_safetensors(content: bytes) -> bytes:
    members = _members(content)
    name = next(name for name in members if name.endswith(".safetensors"))
    size = struct.unpack_from("<Q", members[name])[0]
    header = json.loads(members[name][8 : 8 + size])
    for key in header.keys() - {"__metadata__"}:
        header[key] |= {"shape": [_HUGE], "data_offsets": [0, 4 * _HUGE]}
    text = json.dumps(header).encode()
    return _zip(members | {name: struct.pack("<Q", len(text)) + text})


def _swollen_zip(content: bytes) -> bytes:
    """Each member says in the directory that it has ten bytes, and unpacks to 4 GB."""
    stream, out, directory = _zeros(4 << 30), bytearray(), b""
    for name in list(_members(content))[:3]:
        raw = name.encode()
        common = struct.pack("<5H3I2H", 20, 0, 8, 0, 0x21, 0, len(stream), 10, len(raw), 0)
        offset = len(out)
        out += b"PK\x03\x04" + common + raw + stream
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<3H2I", 0, 0, 0, 0, offset) + raw
    end = struct.pack("<4H2IH", 0, 0, 3, 3, len(directory), len(out), 0)
    return bytes(out) + directory + b"PK\x05\x06" + end


def _promising_npy(content: bytes) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': (1, {_HUGE}, 1, 1), }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content[128:]


def _objects_npy(content: bytes) -> bytes:
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + _CODE


def _promising_tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("Task04_Hippocampus/a")
        member.size = _HUGE
        archive.addfile(member)
    return out.getvalue() + content


def _endless_tar(content: bytes) -> bytes:
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + _zeros(4 << 30) + struct.pack("<2I", 0, 0)


def _yaml_code(content: bytes) -> bytes:
    return content + f"\nseed: !!python/object/apply:os.system ['touch {EXECUTED}']\n".encode()


def _yaml_laughs(content: bytes) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return ("\n".join(lines) + "\n").encode() + content


def _sizes_of_header(content: bytes) -> bytes:
    """An NRRD or MetaImage that promises 2^40 voxels."""
    return content.replace(b"44 40 48", b"16384 16384 4096", 1)


_SCANS: Mapping[str, Bomb] = {
    "2^40 voxels": lambda content: _shape(16384, 16384, 4096, content=content),
    "2^40 channels": lambda content: _shape(44, 40, 48, 32767, 8192, content=content),
    "2^40 voxels in a row": _nifti2,
    "4 GB behind the scan": _endless_gzip,
}
_TORCH: Mapping[str, Bomb] = {
    "code in data.pkl": _code_in_zip, "a pickle": _code_only, "weights of 2^40 values": _broad_tensors,
}  # fmt: skip
_ZIPS: Mapping[str, Bomb] = {"members of 4 GB that say 10 bytes": _swollen_zip}
_BOMBS: Mapping[str, Mapping[str, Bomb]] = {
    "scan": _SCANS, "training scan": _SCANS, "mask": _SCANS,
    "shards": {"2^40 voxels": _promising_npy, "code in an array": _objects_npy},
    "checkpoint": _TORCH | _ZIPS, "checkpoint of nnU-Net v2": _TORCH | _ZIPS,
    "model.zip": _ZIPS | {"weights of 2^40 values": _promising_safetensors, "code": _code_only},
    "zip": _ZIPS, "model of nnU-Net v2": _ZIPS,
    "tar": {"a file of 2^40 bytes": _promising_tar},
    "packed tar": {"4 GB of nothing": _endless_tar},
    "options": {"code in YAML": _yaml_code, "a billion values": _yaml_laughs},
    "nrrd": {"2^40 voxels": _sizes_of_header}, "mha": {"2^40 voxels": _sizes_of_header},
}  # fmt: skip
