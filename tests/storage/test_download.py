"""Files from the web: a download that breaks off goes on, and nothing has its name before it is proven.

The publisher is a server on this machine.
"""

import hashlib
import json
import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.server import Server
from lrp.storage.download import DownloadError, fetch

MB = 2**20
BODY = os.urandom(3 * MB)
HALF = len(BODY) // 2


@pytest.fixture
def server(server: Server) -> Server:
    server.body = BODY
    return server


def fetched(server: Server, path: Path, **options: Any) -> list[tuple[int, int | None]]:
    """Fetch what the server publishes just now, or nothing else; returns what progress was told."""
    told: list[tuple[int, int | None]] = []

    def proof(part: Path) -> None:
        if part.read_bytes() != server.body:
            raise DownloadError("another file came")

    url = options.pop("url", f"{server.url}file")
    fetch(url, path, options.pop("proof", proof), lambda *step: told.append(step), **options)
    return told


def refused(server: Server, path: Path, **options: Any) -> str:
    with pytest.raises(DownloadError) as caught:
        fetched(server, path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def begun(server: Server, path: Path) -> None:
    """Half of the file is downloaded."""
    server.mode = "breaks off"
    assert refused(server, path) == (
        "the connection ended after 1.5 of 3.0 MB, a second attempt goes on from there"
    )
    server.mode = ""
    assert Path(f"{path}.part").read_bytes() == server.body[:HALF] and not path.exists()


def complete(server: Server, path: Path) -> bool:
    return path.read_bytes() == server.body and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_download_arrives_whole_and_tells_its_progress(server, tmp_path):
    told = fetched(server, tmp_path / "deep" / "file")
    assert complete(server, tmp_path / "deep" / "file")
    assert told[0] == (0, 3 * MB) and told[-1] == (3 * MB, 3 * MB)
    assert told == sorted(told) and len(told) > 2
    server.mode = "no length"
    assert fetched(server, tmp_path / "deep" / "file")[-1] == (3 * MB, None)


# --- going on -----------------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_goes_on(server, tmp_path):
    begun(server, tmp_path / "file")
    note = json.loads((tmp_path / "file.part.json").read_text())
    assert note == {"etag": '"one"', "length": len(BODY)}
    told = fetched(server, tmp_path / "file")
    assert server.asked == [(None, None), (f"bytes={HALF}-", '"one"')] and told[0] == (HALF, len(BODY))
    assert complete(server, tmp_path / "file")


def test_from_a_server_that_sends_no_parts_it_starts_afresh(server, tmp_path):
    begun(server, tmp_path / "file")
    server.mode = "no ranges"
    assert fetched(server, tmp_path / "file")[0] == (0, len(BODY))
    assert len(server.asked) == 2 and complete(server, tmp_path / "file")


@pytest.mark.parametrize("mode", ["", "no ranges", "careless"])
def test_a_file_that_has_changed_meanwhile_is_fetched_afresh(server, tmp_path, mode):
    begun(server, tmp_path / "file")
    server.body, server.etag, server.mode = BODY[::-1] + b"more", '"two"', mode
    fetched(server, tmp_path / "file")
    assert complete(server, tmp_path / "file") and server.asked[1][0] is not None
    # The careless one sends the new file's end: asked again for all.
    assert len(server.asked) == (3 if mode == "careless" else 2)


def test_a_file_of_another_length_under_the_same_etag_is_fetched_afresh(server, tmp_path):
    begun(server, tmp_path / "file")
    server.body = BODY[::-1] + b"more"
    fetched(server, tmp_path / "file")
    assert complete(server, tmp_path / "file") and [asked for asked, _ in server.asked][2:] == [None]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
@pytest.mark.parametrize("decisive", [False, True])
def test_without_a_version_only_what_a_proof_decides_is_gone_on_with(server, tmp_path, etag, decisive):
    server.etag = etag
    begun(server, tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file.part"]
    fetched(server, tmp_path / "file", decisive=decisive)
    assert server.asked == [(None, None), (f"bytes={HALF}-", None) if decisive else (None, None)]
    assert complete(server, tmp_path / "file")


@pytest.mark.parametrize("mode", ["", "silent about length"])
@pytest.mark.parametrize("note", [True, False])
def test_a_download_that_was_complete_but_for_its_name(server, tmp_path, mode, note):
    begun(server, tmp_path / "file")
    (tmp_path / "file.part").write_bytes(BODY)
    if not note:
        (tmp_path / "file.part.json").unlink()
    server.mode = mode
    fetched(server, tmp_path / "file")
    assert len(server.asked) == 2 and complete(server, tmp_path / "file")


def test_a_part_that_is_longer_than_the_file(server, tmp_path):
    begun(server, tmp_path / "file")
    (tmp_path / "file.part").write_bytes(BODY + b"more")
    fetched(server, tmp_path / "file")
    assert [asked for asked, _ in server.asked][2:] == [None] and complete(server, tmp_path / "file")


@pytest.mark.parametrize("left", ["", "[]", "{", '{"etag": 1}', "\xff"])
def test_a_damaged_note_of_the_version_is_no_note(server, tmp_path, left):
    begun(server, tmp_path / "file")
    (tmp_path / "file.part.json").write_text(left, encoding="latin-1")
    fetched(server, tmp_path / "file", decisive=False)
    assert server.asked[1] == (None, None) and complete(server, tmp_path / "file")


# --- not taken ----------------------------------------------------------------------------------------------


def test_what_is_not_proven_is_deleted(server, tmp_path):
    begun(server, tmp_path / "file")

    def proof(part: Path) -> None:
        raise DownloadError(f"it is {hashlib.sha256(part.read_bytes()).hexdigest()}")

    assert refused(server, tmp_path / "file", proof=proof) == f"it is {hashlib.sha256(BODY).hexdigest()}"
    assert list(tmp_path.iterdir()) == []


def test_no_more_is_taken_than_was_expected(server, tmp_path):
    limit = MB + MB // 2
    assert refused(server, tmp_path / "file", limit=limit) == (
        "the server announces 3.0 MB, at most 1.5 MB were expected"
    )
    server.mode = "no length"
    assert refused(server, tmp_path / "file", limit=limit) == (
        "more came than the 1.5 MB that were expected, and was deleted"
    )
    assert list(tmp_path.iterdir()) == []
    fetched(server, tmp_path / "file", limit=3 * MB)
    assert complete(server, tmp_path / "file")


def test_parts_that_nobody_asked_for_are_not_taken(server, tmp_path):
    server.mode = "parts only"
    assert refused(server, tmp_path / "file") == (
        "the server sends parts of the file, though the whole was asked for"
    )


@pytest.mark.parametrize(
    "mode, location, reason",
    [
        ("missing", "", "the server answered 404 Not Found"),
        ("mute", "", "timed out"),
        ("redirect", "http://example.invalid/file", "http://example.invalid/file is not https"),
        ("redirect", "ftp://example.invalid/file", "ftp://example.invalid/file is not https"),
    ],
)
def test_reasons_for_which_a_download_fails(server, tmp_path, mode, location, reason):
    server.mode, server.location = mode, location
    assert refused(server, tmp_path / "file", timeout=0.2) == reason
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    "url",
    ["http://example.invalid/x", "ftp://example.invalid/x", "file:///etc/passwd", "http://localhost/x"],
)
def test_only_https_is_asked(server, tmp_path, url):
    assert refused(server, tmp_path / "file", url=url) == f"{url} is not https"
    assert list(tmp_path.iterdir()) == []


def test_nobody_answers(server, tmp_path):
    assert refused(server, tmp_path / "file", url="http://127.0.0.1:1/x") == "Connection refused"


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "taken").write_text("")
    assert refused(server, tmp_path / "taken" / "file") in ("Not a directory", "File exists")


@pytest.fixture
def certified(tmp_path, monkeypatch, server) -> Server:
    """The same server, with https and a certificate that this process trusts."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return server


def test_https(certified, tmp_path, monkeypatch):
    fetched(certified, tmp_path / "data" / "file")
    assert complete(certified, tmp_path / "data" / "file")
    certified.mode, certified.location = "redirect", f"http://127.0.0.1:{certified.server_port}/x"
    # Not even to this machine.
    assert refused(certified, tmp_path / "file") == f"{certified.location} is not https"
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "certificate verify failed" in refused(certified, tmp_path / "file")
    assert not (tmp_path / "file").exists()
