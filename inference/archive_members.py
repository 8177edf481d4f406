"""The members that an exported model may have, checked before any of them is read."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from utils.errors import UserError

DESCRIPTION, PLAN, NOTE = "model.json", "plan.json", "LICENSE_NOTE.txt"
MAX_TEXT_BYTES = 16 << 20
"""Largest JSON or text in the archive; a plan has some kilobytes."""
MAX_WEIGHT_BYTES = 16 << 30
"""Largest weights of one fold; the largest networks of the field have a few gigabytes."""
MEMBERS, PREVIOUS = "members", "previous"
_NAME = re.compile(
    r"decision\.json|card\.json|LICENSE_NOTE\.txt|"
    rf"({MEMBERS}/\w+/({PREVIOUS}/)?)?(model\.json|plan\.json|doubt\.json|weights\.safetensors|fold_\d+\.safetensors)"
)


def check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse strange or repeated names, links, encryption, and sizes that do not fit the file."""
    members = archive.infolist()
    names = [member.filename for member in members]
    faults = [f"{name!r} does not belong into a model" for name in names if not _NAME.fullmatch(name)]
    faults += [f"{name} occurs twice" for name in sorted(set(names)) if names.count(name) > 1]
    file_bytes = path.stat().st_size
    for member in members:
        limit = MAX_WEIGHT_BYTES if member.filename.endswith(".safetensors") else MAX_TEXT_BYTES
        if member.flag_bits & 1:
            faults.append(f"{member.filename} is encrypted")
        elif member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            faults.append(f"{member.filename} is compressed")
        elif member.file_size > min(limit, file_bytes):
            faults.append(f"{member.filename} claims {member.file_size} bytes")
    prefixes = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors")}
    prefixes = {f"{prefix}/" if prefix else "" for prefix in prefixes or {""}}
    faults += [
        f"{p}{name} is missing" for p in sorted(prefixes) for name in (DESCRIPTION, PLAN) if p + name not in names
    ]
    if faults:
        raise UserError(f"--model {path} is no exported model, or not safe to read: {'; '.join(faults[:10])}")
