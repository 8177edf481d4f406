"""What is fetched is one state of one file, from an address as safe as the first, and not a stitch of two."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from urllib.request import Request

import pytest

from tests.file_server import ONCE, TWICE, FileServer, serving
from utils.errors import UserError
from utils.transfer import Patience, Purpose, SameSafety, fetch

PLAIN = Purpose(elsewhere="NNUNET_CACHE", unpacked=False, compared=False)
COMPARED = Purpose(compared=True)
OLD, NEW = b"a" * 1000, b"b" * 1000


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(OLD, "/file") as server:
        server.state = {"ETag": '"1"'}
        yield server


def get(url: str, part: Path, patience: Patience = ONCE, purpose: Purpose = PLAIN) -> bytes:
    """The file; what is beside it must be gone."""
    fetch(url, part, lambda *_: None, patience, purpose)
    assert [path.name for path in part.parent.iterdir()] == [part.name]
    return part.read_bytes()


def break_off(server: FileServer, part: Path, after: int = 400) -> None:
    server.cuts = [after]
    with pytest.raises(UserError, match="closed early; run the same command again to continue"):
        fetch(server.url, part, lambda *_: None, ONCE, PLAIN)


DATED = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


@pytest.mark.parametrize(("state", "sent"), [({"ETag": '"1"'}, '"1"'), (DATED, DATED["Last-Modified"])])
def test_a_file_of_the_same_state_is_continued(server, tmp_path, state, sent):
    server.state = state
    break_off(server, tmp_path / "part")
    assert get(server.url, tmp_path / "part") == OLD
    assert server.asked == [(None, None), ("bytes=400-", sent)]


@pytest.mark.parametrize("says_length", [True, False])
def test_a_part_that_is_shorter_than_what_was_asked_for_is_not_the_rest(server, tmp_path, says_length):
    break_off(server, tmp_path / "part")
    server.most, server.says_length = 300, says_length
    assert get(server.url, tmp_path / "part", TWICE) == OLD
    assert server.spans == [None, "bytes=400-", "bytes=700-"]


@pytest.mark.parametrize("present", [400, 1000])
def test_a_server_that_cannot_continue_is_asked_for_all(server, tmp_path, present):
    part = tmp_path / "part"
    part.write_bytes(OLD[:present])
    server.ranges = False
    assert get(server.url, part, ONCE, COMPARED) == OLD


def test_a_part_longer_than_the_file_is_started_anew(server, tmp_path):
    part = tmp_path / "part"
    part.write_bytes(OLD + b"more")
    assert get(server.url, part, TWICE, COMPARED) == OLD


@pytest.mark.parametrize("knows_if_range", [True, False])
@pytest.mark.parametrize("cut", [400, 1000])
def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(server, tmp_path, knows_if_range, cut):
    # A cut after the last byte: the whole old file lies there when the command is killed.
    part = tmp_path / "part"
    break_off(server, part, min(cut, 999))
    if cut == 1000:
        part.write_bytes(OLD)
    server.content, server.state, server.knows_if_range = NEW, {"ETag": '"2"'}, knows_if_range
    assert get(server.url, part, TWICE) == NEW


def test_a_whole_file_of_another_state_and_the_same_length_is_not_kept(server, tmp_path):
    break_off(server, tmp_path / "part", 999)
    (tmp_path / "part").write_bytes(OLD)
    server.content, server.state, server.ranges = NEW, {"ETag": '"2"'}, False
    assert get(server.url, tmp_path / "part") == NEW


WEAK = [{}, {"ETag": 'W/"1"'}, {"ETag": "none"}]


@pytest.mark.parametrize("state", WEAK, ids=str)
def test_without_a_state_only_what_is_compared_later_is_continued(server, tmp_path, state):
    server.state, part = state, tmp_path / "part"
    server.cuts = [400]
    with pytest.raises(UserError, match="closed early; check the address"):
        fetch(server.url, part, lambda *_: None, ONCE, PLAIN)
    assert not list(tmp_path.iterdir())
    server.cuts = [400]
    assert get(server.url, part, TWICE) == OLD
    server.asked.clear()
    part.write_bytes(OLD[:300])
    assert get(server.url, part, ONCE, COMPARED) == OLD and server.asked == [("bytes=300-", None)]


def test_a_redirect_is_followed_and_continued_behind(server, tmp_path):
    url, part = server.url.replace("file", "moved"), tmp_path / "part"
    server.cuts = [400]
    assert get(url, part, TWICE) == OLD
    assert server.asked == [(None, None), ("bytes=400-", '"1"')]


def test_no_room_names_what_chooses_the_folder(server, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.room.free_bytes", lambda _: 999)
    with pytest.raises(
        UserError, match=r"the bytes of the file need 0.00 MB .* choose another folder with NNUNET_CACHE"
    ):
        get(server.url, tmp_path / "part")


@pytest.mark.parametrize(("host", "fault"), [("nowhere.invalid", ""), ("127.0.0.1:1", "Connection refused")])
def test_no_connection_is_one_message(tmp_path, host, fault):
    with pytest.raises(UserError, match=f"http://{host}/m: .*{fault}.*; check the address and the connection"):
        get(f"http://{host}/m", tmp_path / "part")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("https://a.org/m", "http://a.org/m"),
        ("http://a.org/m", "ftp://a.org/m"),
        ("http://a.org/m", "file:///etc/passwd"),
    ],
)
def test_a_less_safe_address_is_not_followed(old, new):
    with pytest.raises(UserError, match=f"{old}: the server sends on to {new}, which is not safe"):
        SameSafety().redirect_request(Request(old), None, 302, "Found", {}, new)


def test_a_safe_address_is_followed():
    for old, new in (("http://a.org/m", "https://b.org/m"), ("https://a.org/m", "https://b.org/m")):
        followed = SameSafety().redirect_request(Request(old), None, 302, "Found", Message(), new)
        assert followed is not None and followed.full_url == new
