"""Ways to damage a file, by a seed: blindly, and knowing what kind of file it is."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

VALUES = (
    None, True, False, -1, 0, 1, 2.5, 1e308, -1e308, 10**30, 2**40, 2**63, "", "x", "../../escaped", "/tmp/escaped",
    "a\nb", "\udc80", "a\0b", [], {}, [[]], [{}], {"a": 1}, [1, "a", None], [-1, -1, -1], ["x"], {"": ""},
    "NaN", [0, 0, 0],
    [10**9, 10**9, 10**9], "x" * 10000,
)  # fmt: skip
_FIELDS = (  # of a NIfTI-1 header: offset, format
    (0, "i"), (40, "8h"), (70, "h"), (72, "h"), (76, "8f"), (108, "f"), (112, "f"), (116, "f"), (123, "b"), (252, "h"),
    (254, "h"), (256, "3f"), (268, "3f"), (280, "4f"), (296, "4f"), (312, "4f"), (344, "4s"),
)  # fmt: skip
_NUMBERS = (0, 1, -1, 2, 3, 7, 16, 64, 127, 255, 512, 1024, 2304, 32767, -32768)
_REALS = (0.0, -1.0, 1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"), 352.0, 1e6)


def blind(content: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat or insert bytes somewhere."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 4, 64, 4096))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(len(data[at : at + length]))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.randbytes(length)
        else:
            data[at:at] = data[at : at + length]
    return bytes(data)


def nifti_gz(content: bytes, rng: random.Random) -> bytes:
    """A .nii.gz whose header or whose stream is damaged."""
    kind = rng.randrange(8)
    if kind == 0:
        return blind(content, rng)
    if kind == 1:
        return content[: rng.randrange(len(content))]
    if kind == 2:
        return content + rng.choice((b"\0" * 100, rng.randbytes(50), content, gzip.compress(b"more")))
    data = bytearray(gzip.decompress(content))
    if kind == 3:
        return gzip.compress(bytes(data[: rng.randrange(len(data))]), 1)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _damage_field(data, rng)
    return gzip.compress(bytes(data), 1)


def _damage_field(data: bytearray, rng: random.Random) -> None:
    offset, kind = rng.choice(_FIELDS)
    count, letter = int(kind[:-1] or 1), kind[-1]
    if letter == "s":
        data[offset : offset + count] = rng.choice((b"ni1\0", b"\0\0\0\0", b"n+2\0", rng.randbytes(4)))
        return
    size = struct.calcsize(letter)
    for _ in range(rng.choice((1, 1, count))):
        place = offset + size * rng.randrange(count)
        value: Any = rng.choice(_REALS) if letter == "f" else rng.choice(_NUMBERS)
        if letter == "b":
            value = max(min(value, 127), -128)
        struct.pack_into(f"<{letter}", data, place, value)


def text_json(content: bytes, rng: random.Random) -> bytes:
    """JSON with a value replaced, removed, moved or doubled, or that is no JSON any more."""
    kind = rng.randrange(12)
    if kind == 0:
        return blind(content, rng)
    if kind == 1:
        odd = (
            b"",
            b"[]",
            b"null",
            b"{}",
            b"\xef\xbb\xbf" + content,
            b"[" * 100000,
            content * 2,
            b'{"version": ' + b"9" * 5000 + b"}",
            b'{"a":' * 5000,
        )
        return rng.choice((*odd, content.decode().encode("utf-16"), content.replace(b":", b":NaN,", 1)))
    try:
        value = json.loads(content)
    except ValueError:
        # Lines of a log, say.
        return blind(content, rng)
    for _ in range(rng.choice((1, 1, 1, 3))):
        found = list(_places(value))
        path = rng.choice(found)
        if not path:
            value = copy.deepcopy(rng.choice(VALUES))
            if not isinstance(value, dict | list):
                break
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        if kind == 2:
            del parent[path[-1]]
        elif kind == 3 and isinstance(parent, dict):
            parent[rng.choice(("further", "version", "__class__", ""))] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 4 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif isinstance(parent[path[-1]], int | float) and rng.random() < 0.5:
            parent[path[-1]] = rng.choice((0, -1, 1, parent[path[-1]] * 2, -parent[path[-1]], 1e9, 0.5, 10**12))
        else:
            parent[path[-1]] = copy.deepcopy(rng.choice(VALUES))
        if not isinstance(value, dict | list) or not value:
            break
    return json.dumps(value).encode("utf-8", "surrogatepass" if rng.random() < 0.2 else "backslashreplace")


def text_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines of `name: value` with other values, names and signs."""
    if rng.random() < 0.3:
        return blind(content, rng)
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    name, _, value = lines[at].partition(": ")
    kind = rng.randrange(4)
    if kind == 0:
        lines[at] = f"{name}: {json.dumps(rng.choice(VALUES))}"
    elif kind == 1:
        lines[at] = rng.choice(
            (f"further: {value}", f"{name}:{value}", f"  {lines[at]}", f"- {value}", name, f"? {name}")
        )
    elif kind == 2:
        lines[at] = f"{name}: " + rng.choice(
            ("!!python/name:os.system", "*a", "&a [*a]", "!!binary x", "{", "2020-13-45")
        )
    else:
        lines.insert(at, rng.choice((lines[at], "---", "...", "%YAML 9", "<<: {a: 1}", "\t", "#" * 9999)))
    return "\n".join(lines).encode()


def headed(content: bytes, rng: random.Random) -> bytes:
    """A file of lines `name: value` or `name = value` and then voxels (NRRD, MetaImage) with a damaged line."""
    if rng.random() < 0.3:
        return blind(content, rng)
    end = content.find(b"\n\n") if content.startswith(b"NRRD") else content.find(b"LOCAL")
    lines = content[:end].split(b"\n")
    at = rng.randrange(1, len(lines))
    name, sign, value = (lines[at] + b" ").partition(b": " if b": " in lines[at] else b" = ")
    numbers = (
        b"0",
        b"-1",
        b"1099511627776",
        b"nan",
        b"1e30",
        b"2147483647",
        b"",
        b"x",
        b"../../escaped",
        b"44 40 48 9",
    )
    words = value.split()
    if rng.random() < 0.2:
        del lines[at]
    else:
        if words and rng.random() < 0.7:
            words[rng.randrange(len(words))] = rng.choice(numbers)
        else:
            words = [rng.choice(numbers)] * rng.choice((1, 3))
        lines[at] = name + sign + b" ".join(words)
    return b"\n".join(lines) + content[end:]


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in keys:
        yield from _places(each, (*path, key))


def zip_file(content: bytes, rng: random.Random) -> bytes:
    """A zip (a model, or a checkpoint of torch) with a damaged, missing, renamed, doubled or swollen member."""
    if rng.random() < 0.3:
        return blind(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, member, how = members[at]
    kind = rng.randrange(8)
    if kind == 0:
        del members[at]
    elif kind == 1:
        evil = rng.choice(
            ("../../escaped", "/tmp/escaped", name + "x", name.upper(), "a/" * 200 + "b", "", "con", "\\x")
        )
        members[at] = (evil, member, how)
    elif kind == 2:
        members.append((name, blind(member, rng), how))
    elif kind == 3:
        members[at] = (name, bytes(1 << 28), zipfile.ZIP_DEFLATED)
    elif kind == 4 and len(member) > 8:
        # The header of safetensors: its length, then JSON.
        members[at] = (name, struct.pack("<Q", rng.choice((0, 1, 2**40, 2**63, len(member)))) + member[8:], how)
    elif name.endswith(".json"):
        members[at] = (name, text_json(member, rng), how)
    else:
        members[at] = (name, blind(member, rng), how)
    return _zip(members)


def _zip(members: list[tuple[str, bytes, int]]) -> bytes:
    import warnings

    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # two members of one name
        for name, member, how in members:
            archive.writestr(zipfile.ZipInfo(name), member, how, compresslevel=1)
    return file.getvalue()


def tar_file(content: bytes, rng: random.Random) -> bytes:
    """A tar with links, devices, names that lead out, sizes that are not there, or damage."""
    if rng.random() < 0.3:
        return blind(content, rng)
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as source, tarfile.open(fileobj=out, mode="w") as target:
        members = source.getmembers()
        chosen = rng.randrange(len(members))
        for number, member in enumerate(members):
            file = source.extractfile(member) if member.isfile() else None
            if number == chosen:
                _odd_member(member, rng)
                if not member.isfile():
                    file = None
            target.addfile(member, file)
            if number == chosen and rng.random() < 0.3:
                target.addfile(member, source.extractfile(members[0]) if file and members[0].isfile() else None)
    data = out.getvalue()
    return data[: rng.randrange(len(data))] if rng.random() < 0.2 else data


def _odd_member(member: tarfile.TarInfo, rng: random.Random) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        member.name = rng.choice(
            ("../../escaped", "/tmp/escaped", "Task04_Hippocampus/../../escaped", "", "a\nb", "x" * 300)
        )
    elif kind in (1, 2):
        member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE))
        member.linkname, member.size = rng.choice(("/etc/passwd", "../../../..", "/tmp", member.name, "nowhere")), 0
    elif kind == 3:
        member.type, member.size = rng.choice((tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE)), 0
    elif kind == 4:
        member.mode = rng.choice((0, 0o4777, 0o777))
    else:
        member.mtime = rng.choice((0, 2**33, 1))
