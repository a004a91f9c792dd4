"""`lrp data`: downloads that break off and go on, archives that mean harm, runs that are killed.

Nothing here uses the network: the publisher is a server on this machine, the data sets are made here and tiny.
"""

import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import lrp.data.imagenette
import lrp.storage.archives
import lrp.storage.download
from helpers.server import Server
from lrp.classes import imagenet_names, imagenet_wnids
from lrp.cli.common import guarded_command
from lrp.cli.data import data as command
from lrp.data.data_set import DataSet
from lrp.data.imagenette import ARCHIVES, Archive, obtain_imagenette
from lrp.errors import BusyError, DataError
from lrp.storage.archives import Limits, UnpackError, unpack
from lrp.storage.locks import Lock

MB = 2**20
CLASSES = ("n01440764", "n02102040")
FOLDER = "tiny2-160"
RANDOM = random.Random(0)
FILES = {
    f"{FOLDER}/{split}/{name}/{name}_{index}.JPEG": RANDOM.randbytes(1000 + index)
    for split, count in (("train", 3), ("val", 1))
    for name in CLASSES
    for index in range(count)
} | {f"{FOLDER}/noisy_tiny.csv": b"path,noisy_labels_0\n"}


def message(call: Callable[..., Any], *args: Any, kind: type[Exception] = DataError, **options: Any) -> str:
    """The text of the error that `call` raises; one line, as the command line prints it."""
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- archives made here -------------------------------------------------------------------------------------


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tarred(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


FOLDERS = sorted({str(parent) for name in FILES for parent in Path(name).parents} - {"."})
GOOD = [
    *(member(name, type=tarfile.DIRTYPE, mode=0o755) for name in FOLDERS),
    *(member(name, content) for name, content in FILES.items()),
]


def packed(*members: tuple[tarfile.TarInfo, bytes], **options: Any) -> bytes:
    return gzip.compress(tarred(*members, **options), 1, mtime=0)


def good(*more: tuple[tarfile.TarInfo, bytes]) -> bytes:
    return packed(*GOOD, *more)


# --- the publisher ------------------------------------------------------------------------------------------


@pytest.fixture
def server(server: Server) -> Server:
    server.body = good()
    return server


def published(server: Server, *, md5: bool = False, **changes: Any) -> Archive:
    """What is known of the archive that the server publishes just now."""
    archive = Archive(
        "tiny (160px)", f"{FOLDER}.tgz", len(server.body), 6, 2, CLASSES, publisher=server.url, largest=MB,
        md5=hashlib.md5(server.body).hexdigest() if md5 else None,
    )  # fmt: skip
    return replace(archive, **changes)


def files(folder: Path) -> dict[str, bytes]:
    """What lies below a folder, whatever it is."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() and not p.is_symlink() else b"?"
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or not p.is_dir()
    }


BESIDE = {f"{FOLDER}.tgz", f"{FOLDER}.json"}


# --- all is well --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("md5", [False, True])
def test_a_data_set_is_downloaded_proven_and_unpacked(server, tmp_path, md5):
    root, told, said = tmp_path / "new" / "data", [], []
    archive = published(server, md5=md5)
    obtained = obtain_imagenette(archive, root, progress=lambda *step: told.append(step), say=said.append)
    assert {n: c for n, c in files(root).items() if n not in BESIDE} == FILES
    assert set(files(root)) == set(FILES) | BESIDE and sorted(p.name for p in root.iterdir()) == sorted(
        {FOLDER} | BESIDE
    )
    sha256 = hashlib.sha256(server.body).hexdigest()
    assert (obtained.folder, obtained.fresh, obtained.train, obtained.val) == (root / FOLDER, True, 6, 2)
    assert obtained.sha256 == sha256
    assert json.loads((root / f"{FOLDER}.json").read_text()) == {
        "archive": f"{FOLDER}.tgz", "bytes": len(server.body), "md5": hashlib.md5(server.body).hexdigest(),
        "sha256": sha256, "train": 6, "val": 2,
    }  # fmt: skip
    assert said == [f"tiny (160px): about 0 MB from {server.url}{FOLDER}.tgz to {root}"]
    assert told[0] == ("downloading", 0, len(server.body))
    assert ("downloading", len(server.body), len(server.body)) in told
    assert {step for step, _, _ in told} == {"downloading", "unpacking"}
    assert all(0 <= done <= total for _, done, total in told)
    assert len(list(DataSet.open(root / FOLDER, "all"))) == 8


def test_what_is_there_and_complete_is_left_alone(server, tmp_path):
    first = obtain_imagenette(published(server), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = obtain_imagenette(published(server), tmp_path, say=pytest.fail)
    assert again == replace(first, fresh=False)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before and len(server.asked) == 1
    (tmp_path / f"{FOLDER}.tgz").unlink()  # both are dispensable
    (tmp_path / f"{FOLDER}.json").unlink()
    assert obtain_imagenette(published(server), tmp_path).sha256 == ""


def test_what_is_there_but_not_complete_is_not_touched_unless_asked(server, tmp_path):
    obtain_imagenette(published(server), tmp_path)
    lost = tmp_path / FOLDER / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    lost.unlink()
    note = tmp_path / FOLDER / "my notes.txt"
    note.write_text("")
    assert message(obtain_imagenette, published(server), tmp_path) == (
        f"tiny (160px): {tmp_path / FOLDER} is there but not complete: train/ has 5 files instead of 6. "
        "Move it away, or have it unpacked anew with --overwrite."
    )
    said: list[str] = []
    assert obtain_imagenette(published(server), tmp_path, overwrite=True, say=said.append).fresh
    assert lost.exists() and not note.exists() and len(server.asked) == 1
    assert said == [f"tiny (160px): from {tmp_path / FOLDER}.tgz, which is there already"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({FOLDER} | BESIDE)


@pytest.mark.parametrize("what", ["file", "link"])
def test_whatever_has_the_name_is_replaced_if_asked(server, tmp_path, what):
    root, place = tmp_path / "data", tmp_path / "data" / FOLDER
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo").write_text("mine")
    root.mkdir()
    place.symlink_to(tmp_path / "mine") if what == "link" else place.write_text("")
    assert message(obtain_imagenette, published(server), root) == (
        f"tiny (160px): {place} is there but not complete: no train/, no val/. "
        "Move it away, or have it unpacked anew with --overwrite."
    )
    obtain_imagenette(published(server), root, overwrite=True)
    assert place.is_dir() and not place.is_symlink() and (tmp_path / "mine" / "photo").exists()


def test_hidden_files_and_leading_dots_are_no_part_of_it(server, tmp_path):
    server.body = packed(
        member("./", type=tarfile.DIRTYPE),
        member("./._tiny2-160", b"x"),
        member(f"./{FOLDER}/train/.DS_Store", b"x"),
        *(member(f"./{name}", content) for name, content in FILES.items()),
    )
    obtain_imagenette(published(server), tmp_path)
    assert set(files(tmp_path)) == set(FILES) | BESIDE


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_in_every_dialect(tmp_path, format):
    name = f"{FOLDER}/{'deep' * 20}/{'name' * 20}"
    path = tmp_path / "x.tgz"
    path.write_bytes(packed(member(name, b"content", mtime=1.5), format=format))
    unpack(path, tmp_path, FOLDER, Limits(10, MB, MB), lambda done: None)
    assert (tmp_path / name).read_bytes() == b"content"


def test_permissions_and_owners_are_not_restored(server, tmp_path):
    odd = {"mode": 0o4777, "uid": 12345, "gid": 12345, "mtime": 1}
    server.body = packed(*(member(name, content, **odd) for name, content in FILES.items()))
    obtain_imagenette(published(server), tmp_path)
    for name in FILES:
        facts = (tmp_path / name).stat()
        assert facts.st_mode & 0o7111 == 0 and facts.st_uid == os.geteuid() and facts.st_mtime > 1e9


# --- downloads ----------------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_goes_on(server, tmp_path):
    server.mode = "breaks off"
    half = len(server.body) // 2
    archive = published(server)
    assert message(obtain_imagenette, archive, tmp_path) == (
        f"tiny (160px): {FOLDER}.tgz (about 0 MB) could not be fetched from {server.url}{FOLDER}.tgz (the connection "
        "ended after 0.0 of 0.0 MB, a second attempt goes on from there); try again, or download that file elsewhere, "
        f"put it at {tmp_path / FOLDER}.tgz and run the same command."
    )
    part = tmp_path / f"{FOLDER}.tgz.part"
    assert part.read_bytes() == server.body[:half]
    assert json.loads(part.with_name(part.name + ".json").read_text()) == {
        "etag": '"one"', "length": len(server.body),
    }  # fmt: skip
    server.mode, told = "", []
    obtain_imagenette(archive, tmp_path, progress=lambda *step: told.append(step))
    assert server.asked == [(None, None), (f"bytes={half}-", '"one"')]
    assert told[0] == ("downloading", half, len(server.body))
    assert set(files(tmp_path)) == set(FILES) | BESIDE


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
@pytest.mark.parametrize("md5", [False, True])
def test_without_a_version_only_what_a_checksum_proves_is_gone_on_with(server, tmp_path, etag, md5):
    server.etag = etag
    begun(server, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"{FOLDER}.tgz.part"]
    obtain_imagenette(published(server, md5=md5), tmp_path)
    half = f"bytes={len(server.body) // 2}-"
    assert server.asked == [(None, None), (half, None) if md5 else (None, None)]


def begun(server: Server, root: Path) -> None:
    """Half of the archive is downloaded."""
    server.mode = "breaks off"
    message(obtain_imagenette, published(server), root)
    server.mode = ""
    assert (root / f"{FOLDER}.tgz.part").stat().st_size == len(server.body) // 2


def test_the_cap_is_a_fifth_above_the_published_size(server, tmp_path):
    archive = published(server, size=len(server.body) * 5 // 6 - 10)
    url, path = f"{server.url}{FOLDER}.tgz", tmp_path / f"{FOLDER}.tgz"
    assert message(obtain_imagenette, archive, tmp_path) == (
        f"tiny (160px): {FOLDER}.tgz (about 0 MB) could not be fetched from {url} (the server announces 0.0 MB, at "
        f"most 0.0 MB were expected); try again, or download that file elsewhere, put it at {path} and run the same "
        "command."
    )
    path.write_bytes(server.body)
    assert message(obtain_imagenette, archive, tmp_path) == (
        f"tiny (160px): {path} has 0 MB, at most 0 MB were expected. Delete it and try again."
    )
    obtain_imagenette(replace(archive, size=len(server.body) * 5 // 6 + 10), tmp_path)


@pytest.mark.parametrize("url", ["http://example.invalid/", "ftp://example.invalid/", "file:///etc/"])
def test_only_https_is_asked(tmp_path, server, url):
    archive = published(server, publisher=url)
    assert message(obtain_imagenette, archive, tmp_path) == (
        f"tiny (160px): {FOLDER}.tgz (about 0 MB) could not be fetched from {url}{FOLDER}.tgz ({url}{FOLDER}.tgz is "
        f"not https); try again, or download that file elsewhere, put it at {tmp_path / FOLDER}.tgz and run the same "
        "command."
    )
    assert list(tmp_path.iterdir()) == []


def test_without_network_one_sentence_says_where_to_put_the_file(tmp_path, server):
    archive = published(server, publisher="http://127.0.0.1:1/", size=99_000_000, md5=True)
    archive = replace(archive, md5=hashlib.md5(server.body).hexdigest())
    assert message(obtain_imagenette, archive, tmp_path / "data") == (
        f"tiny (160px): {FOLDER}.tgz (about 94 MB) could not be fetched from http://127.0.0.1:1/{FOLDER}.tgz "
        "(Connection refused); try again, or download that file elsewhere, put it at "
        f"{tmp_path / 'data' / FOLDER}.tgz and run the same command."
    )
    (tmp_path / "data" / f"{FOLDER}.tgz").write_bytes(server.body)
    obtain_imagenette(archive, tmp_path / "data")
    assert set(files(tmp_path / "data")) == set(FILES) | BESIDE


# --- content that is not what was published -----------------------------------------------------------------

PAGE = b"<html>Please log in</html>"


@pytest.mark.parametrize("md5", [None, "0" * 32])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_page_instead_of_the_archive(server, tmp_path, md5, by_hand):
    archive, path = published(server, md5=md5), tmp_path / f"{FOLDER}.tgz"
    server.body = PAGE
    if by_hand:
        path.write_bytes(PAGE)
        expected = (
            f"tiny (160px): {path} is no archive: it begins with b'<html>Please'. Delete it and try again."
        )
    else:
        expected = (
            f"tiny (160px): {FOLDER}.tgz (about 0 MB) could not be fetched from {server.url}{FOLDER}.tgz (what came is "
            "no archive: it begins with b'<html>Please', and was deleted); try again, or download that file elsewhere, "
            f"put it at {path} and run the same command."
        )
    assert message(obtain_imagenette, archive, tmp_path) == expected
    assert set(files(tmp_path)) == ({path.name} if by_hand else set())


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_wrong_md5(server, tmp_path, by_hand):
    archive, path, came = published(server, md5=True), tmp_path / f"{FOLDER}.tgz", hashlib.md5(good())
    fault = f"is not the published file: its MD5 is {came.hexdigest()}, not {'0' * 32}"
    archive = replace(archive, md5="0" * 32)
    if by_hand:
        path.write_bytes(server.body)
        expected = f"tiny (160px): {path} {fault}. Delete it and try again."
    else:
        expected = (
            f"tiny (160px): {FOLDER}.tgz (about 0 MB) could not be fetched from {server.url}{FOLDER}.tgz (what came "
            f"{fault}, and was deleted); try again, or download that file elsewhere, put it at {path} and run the same "
            "command."
        )
    assert message(obtain_imagenette, archive, tmp_path) == expected
    assert set(files(tmp_path)) == ({path.name} if by_hand else set())


def without(*names: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(info, content) for info, content in GOOD if not info.name.startswith(tuple(names))]


@pytest.mark.parametrize(
    "members, lacking",
    [
        (without(f"{FOLDER}/val"), "no val/"),
        ([member(f"{FOLDER}/readme", b"x")], "no train/, no val/"),
        ([], "no train/, no val/"),
        (without(f"{FOLDER}/val/n0"), "val/ has no class folders"),
        (without(f"{FOLDER}/train/{CLASSES[0]}"), f"train/ has no {CLASSES[0]}"),
        ([*GOOD, member(f"{FOLDER}/val/n00000001/x", b"x")], "val/ has n00000001 besides"),
        (
            [*without(f"{FOLDER}/train/{CLASSES[0]}"), member(f"{FOLDER}/train/n00000001/x", b"x")],
            f"train/ has no {CLASSES[0]} and n00000001 besides",
        ),
        (without(f"{FOLDER}/train/{CLASSES[0]}/{CLASSES[0]}_1"), "train/ has 5 files instead of 6"),
        ([*GOOD, member(f"{FOLDER}/val/{CLASSES[0]}/x", b"x")], "val/ has 3 files instead of 2"),
    ],
)
def test_an_archive_of_something_else(server, tmp_path, members, lacking):
    server.body = packed(*members)
    archive = published(server, size=MB)
    path = tmp_path / f"{FOLDER}.tgz"
    assert message(obtain_imagenette, archive, tmp_path) == (
        f"tiny (160px): {path} does not hold the data set: {lacking}. Delete it and try again."
    )
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_another_archive_than_the_one_before_is_noticed(server, tmp_path):
    first, said = obtain_imagenette(published(server), tmp_path).sha256, []
    server.body = packed(*GOOD[::-1])
    (tmp_path / f"{FOLDER}.tgz").unlink()
    second = obtain_imagenette(published(server), tmp_path, overwrite=True, say=said.append).sha256
    assert first != second and said[-1] == (
        "tiny (160px): this archive is not the one unpacked here before: "
        f"its SHA-256 is {second}, it was {first}."
    )


# --- archives that mean harm --------------------------------------------------------------------------------

INSIDE = f"{FOLDER}/train/{CLASSES[0]}"
ONLY = "only regular files and folders were expected"


def raw(name: str, size: int = 0, kind: bytes = b"0", field: bytes | None = None) -> bytes:
    """One header, written by hand: what tarfile would refuse to write."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108] = b"0000644\0"
    block[124:136] = field if field is not None else f"{size:011o}\0".encode()
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def pax(records: bytes) -> bytes:
    return raw("pax", len(records), b"x") + records + bytes(-len(records) % 512)


END = bytes(1024)
LIAR = raw(f"{FOLDER}/liar", 10_000) + b"x" * 512

HOSTILE = {
    "link": (tarred(member(f"{INSIDE}/a", type=tarfile.SYMTYPE, linkname="/etc/passwd")), f"'{INSIDE}/a' is a link, {ONLY}"),
    "link, then a file through it": (
        tarred(member(f"{FOLDER}/a", type=tarfile.SYMTYPE, linkname="/tmp"), member(f"{FOLDER}/a/b", b"x")),
        f"'{FOLDER}/a' is a link, {ONLY}",
    ),
    "hidden link": (tarred(member(f"{INSIDE}/.a", type=tarfile.SYMTYPE, linkname="..")), f"'{INSIDE}/.a' is a link, {ONLY}"),
    "hard link": (tarred(member(f"{INSIDE}/a", type=tarfile.LNKTYPE, linkname="/etc/passwd")), f"'{INSIDE}/a' is a hard link, {ONLY}"),
    "character device": (tarred(member(f"{INSIDE}/a", type=tarfile.CHRTYPE)), f"'{INSIDE}/a' is a device, {ONLY}"),
    "block device": (tarred(member(f"{INSIDE}/a", type=tarfile.BLKTYPE)), f"'{INSIDE}/a' is a device, {ONLY}"),
    "pipe": (tarred(member(f"{INSIDE}/a", type=tarfile.FIFOTYPE)), f"'{INSIDE}/a' is a pipe, {ONLY}"),
    "contiguous": (tarred(member(f"{INSIDE}/a", type=tarfile.CONTTYPE)), f"'{INSIDE}/a' is of an unusual kind, {ONLY}"),
    "unknown": (raw(f"{FOLDER}/a", kind=b"Q") + END, f"'{FOLDER}/a' is of an unusual kind, {ONLY}"),
    "sparse, old": (raw(f"{FOLDER}/a", kind=b"S") + END, f"'{FOLDER}/a' is of an unusual kind, {ONLY}"),
    "sparse, new": (
        pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n36 GNU.sparse.realsize=99999999999\n")
        + raw(f"{FOLDER}/a", 512) + b"1\n0\n512\n".ljust(512, b"\0") + END,
        f"'{FOLDER}/a' is of an unusual kind, {ONLY}",
    ),
    "absolute": (tarred(member("/etc/cron.d/x", b"x")), "'/etc/cron.d/x' is an absolute path"),
    "up": (tarred(member("../evil", b"x")), "'../evil' leads out of its folder"),
    "up, below": (tarred(member(f"{INSIDE}/../../../../evil", b"x")), f"'{INSIDE}/../../../../evil' leads out of its folder"),
    "up, folder": (tarred(member("..", type=tarfile.DIRTYPE)), "'..' leads out of its folder"),
    "backslash": (tarred(member(f"{FOLDER}\\..\\..\\evil", b"x")), rf"'{FOLDER}\\..\\..\\evil' is no plain name"),
    "line break": (tarred(member(f"{FOLDER}/a\nb", b"x")), rf"'{FOLDER}/a\nb' is no plain name"),
    "escape": (tarred(member(f"{FOLDER}/\x1b[2J", b"x")), rf"'{FOLDER}/\x1b[2J' is no plain name"),
    "no text": (tarred(member(f"{FOLDER}/\udcff", b"x")), rf"'{FOLDER}/\udcff' is no plain name"),
    "long path": (tarred(member(f"{FOLDER}/" + "x/" * 250 + "y", b"x")), f"'{FOLDER}/{'x/' * 15}'... is too long a path"),
    "long name": (tarred(member(f"{FOLDER}/" + "ü" * 128, b"x")), f"'{FOLDER}/{'ü' * 30}'... is too long a path"),
    "beside": (tarred(member("elsewhere/a", b"x")), f"'elsewhere/a' lies outside {FOLDER}/"),
    "twice": (tarred(member(f"{FOLDER}/a", b"x"), member(f"{FOLDER}/a", b"y")), f"'{FOLDER}/a' is there twice"),
    "twice, otherwise written": (tarred(member(f"{FOLDER}/a", b"x"), member(f"./{FOLDER}//a", b"y")), f"'./{FOLDER}//a' is there twice"),
    "twice, but for case": (tarred(member(f"{FOLDER}/a", b"x"), member(f"{FOLDER}/A", b"y")), f"'{FOLDER}/A' is there twice"),
    "folder twice": (tarred(*[member(FOLDER, type=tarfile.DIRTYPE)] * 2), f"'{FOLDER}' is there twice"),
    "file, then folder": (
        tarred(member(f"{FOLDER}/a", b"x"), member(f"{FOLDER}/a/b", b"y")),
        f"'{FOLDER}/a/b' is there twice, as a file and as a folder",
    ),
    "folder, then file": (
        tarred(member(f"{FOLDER}/a/b", b"x"), member(f"{FOLDER}/a", b"y")),
        f"'{FOLDER}/a' is there twice, as a file and as a folder",
    ),
    "the folder is a file": (tarred(member(FOLDER, b"x"), *GOOD[1:]), f"'{FOLDER}/train' is there twice, as a file and as a folder"),
    "large file": (tarred(member(f"{FOLDER}/a", bytes(MB + 1))), f"'{FOLDER}/a' has 1.0 MB, at most 1.0 MB were expected"),
    "claims to be large": (raw(f"{FOLDER}/a", 8**11 - 1) + END, f"'{FOLDER}/a' has 8192.0 MB, at most 1.0 MB were expected"),
    "claims to be huge": (
        raw(f"{FOLDER}/a", field=b"\x80" + (2**60).to_bytes(11)) + END,
        f"'{FOLDER}/a' has {2**40:.1f} MB, at most 1.0 MB were expected",
    ),
    "claims to be negative": (raw(f"{FOLDER}/a", field=b"\xff" * 12) + END, f"'{FOLDER}/a' claims a negative size"),
    "claims more than it has": (LIAR, None),
    "many files": (tarred(*(member(f"{FOLDER}/{i}") for i in range(1021))), "it has more than 1020 members"),
    "large together": (tarred(*(member(f"{FOLDER}/{i}", bytes(MB)) for i in range(3))), "it unpacks to more than 2.0 MB"),
    "large together, hidden": (tarred(*(member(f".{i}", bytes(MB)) for i in range(3))), "it unpacks to more than 2.0 MB"),
    "header without end": (raw("pax", 8**11 - 1, b"x") + bytes(8 * MB), "more than 1 MB stand where its next member should begin"),
    "name without end": (raw("name", 8**11 - 1, b"L") + b"x" * 8 * MB, "more than 1 MB stand where its next member should begin"),
    "sparse map without end": (
        pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n36 GNU.sparse.realsize=99999999999\n")
        + raw(f"{FOLDER}/a", 8 * MB) + (b"999999999\n" + b"1\n" * 4 * MB) + END,
        "more than 1 MB stand where its next member should begin",
    ),
    "bomb behind the end": (tarred(*GOOD) + bytes(64 * MB), "more than 1 MB stand where its next member should begin"),
    "no tar": (b"hello" * 1000, None),
    "nothing": (b"", None),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_archives_that_mean_harm_are_refused_and_leave_nothing(server, tmp_path, name):
    content, clause = HOSTILE[name]
    (tmp_path / "mine").write_text("")
    root = tmp_path / "deep" / "data"
    server.body = gzip.compress(content, 1)
    path = root / f"{FOLDER}.tgz"
    came = message(obtain_imagenette, published(server, size=MB), root)
    before, after = (
        f"tiny (160px): {path} was not unpacked, nothing of it was kept: ",
        ". Delete it and try again.",
    )
    assert came.startswith(before) and came.endswith(after)
    came = came.removeprefix(before).removesuffix(after)
    assert came == clause if clause else came.startswith("it is damaged: ")
    assert set(files(tmp_path)) == {"mine", f"deep/data/{path.name}"}
    assert sorted(p.name for p in root.iterdir()) == [path.name]


DAMAGE = {
    "cut off": (lambda b: b[: len(b) // 2], "it is damaged: Compressed file ended before the end-of-stream marker was reached"),
    "cut off at its end": (lambda b: b[:-4], "it is damaged: Compressed file ended before the end-of-stream marker was reached"),
    "wrong checksum": (lambda b: b[:-8] + bytes(4) + b[-4:], r"it is damaged: CRC check failed 0x0 != 0x[0-9a-f]+"),
    "turned bits": (lambda b: b[: len(b) // 2] + bytes(x ^ 0xFF for x in b[len(b) // 2 :]), "it is damaged: .+|.+ MB .+"),
    "more behind": (lambda b: b + b"hello", r"it is damaged: Not a gzipped file \(b'he'\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_archives(server, tmp_path, name):
    change, clause = DAMAGE[name]
    server.body = change(server.body)
    came = message(obtain_imagenette, published(server, size=MB), tmp_path)
    assert re.search(f"nothing of it was kept: ({clause})\\. Delete it and try again\\.$", came), came
    assert [p.name for p in tmp_path.iterdir()] == [f"{FOLDER}.tgz"]


def test_a_million_members(tmp_path):
    """Refused after as many as there may be; names that all have the same sum of digits share one checksum."""
    digits = np.arange(10**6)[:, None] // 10 ** np.arange(6)[::-1] % 10
    template = np.frombuffer(raw(f"{FOLDER}/{'0' * 6}{'9' * 6}"), np.uint8)
    path, start = tmp_path / "x.tgz", len(FOLDER) + 1
    with gzip.open(path, "wb", compresslevel=1) as file:
        for chunk in np.split(digits, 50):
            blocks = np.tile(template, (len(chunk), 1))
            blocks[:, start : start + 12] = 48 + np.concatenate([chunk, 9 - chunk], axis=1)
            file.write(blocks.tobytes())
        file.write(END)
    assert path.stat().st_size < 50 * MB
    into, begun = tmp_path / "into", time.perf_counter()
    into.mkdir()
    reason = message(unpack, path, into, FOLDER, Limits(100, MB, MB), lambda done: None, kind=UnpackError)
    assert reason == "it has more than 100 members"
    assert time.perf_counter() - begun < 5 and len(files(into)) == 100


def test_an_archive_of_a_gigabyte_of_zeros_takes_neither_disk_nor_memory(tmp_path):
    path, into = tmp_path / "x.tgz", tmp_path / "into"
    into.mkdir()
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(raw(f"{FOLDER}/a", 2**30))
        for _ in range(64):
            file.write(bytes(16 * MB))
    code = (
        "import resource, sys; from pathlib import Path; from lrp.storage.archives import *\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))\n"
        f"unpack(Path(sys.argv[1]), Path(sys.argv[2]), {FOLDER!r}, Limits(9, 2**40, 2**20), lambda done: None)"
    )
    refused = subprocess.run([sys.executable, "-c", code, path, into], capture_output=True, text=True)
    assert refused.stderr.splitlines()[-1] == (
        f"lrp.storage.archives.UnpackError: '{FOLDER}/a' has 1024.0 MB, at most 1.0 MB were expected"
    )
    assert files(into) == {}


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="Python before 3.11.4")
def test_behind_our_judgement_stands_tarfiles_own(tmp_path, monkeypatch):
    monkeypatch.setattr(lrp.storage.archives, "_parts", lambda name: [FOLDER, "evil"])
    path, into = tmp_path / "x.tgz", tmp_path / "deep" / "into"
    path.write_bytes(packed(member("../evil", b"x")))
    into.mkdir(parents=True)
    with pytest.raises(UnpackError, match="outside the destination"):
        unpack(path, into, FOLDER, Limits(9, MB, MB), lambda done: None)
    assert set(files(tmp_path)) == {"x.tgz"}


def test_mutated_archives_raise_our_error_and_write_nowhere_else(tmp_path):
    generator, content = random.Random(1), tarred(*GOOD, member(f"{FOLDER}/{'long' * 40}", b"x"))
    fates = set()
    for attempt in range(300):
        mutated = bytearray(content)
        for _ in range(generator.choice([1, 3, 30])):
            position = generator.randrange(len(content) // 512) * 512 + generator.randrange(
                265
            )  # in a header
            mutated[position] = generator.randrange(256)
            block = mutated[position // 512 * 512 :][:512]
            if generator.random() < 0.8:  # with a checksum that is right again
                block[148:156] = b" " * 8
                at = position // 512 * 512 + 148
                mutated[at : at + 8] = f"{sum(block):06o}\0 ".encode()
        path, into = tmp_path / "x.tgz", tmp_path / "deep" / str(attempt)
        path.write_bytes(gzip.compress(bytes(mutated), 1))
        into.mkdir(parents=True)
        try:
            unpack(path, into, FOLDER, Limits(100, MB, MB), lambda done: None)
            fates.add("unpacked")
        except UnpackError as error:
            assert "\n" not in str(error)
            fates.add(re.sub(r"'.*'|[\d.]+", "_", str(error))[:25])
        assert all(p.is_file() or p.is_dir() for p in into.rglob("*"))
        assert not any(p.is_symlink() for p in into.rglob("*"))
        assert {p.name for p in into.iterdir()} <= {FOLDER}
    assert {p.name for p in tmp_path.iterdir()} == {"x.tgz", "deep"} and len(fates) > 5


# --- runs that end early ------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from pathlib import Path
from lrp.data.imagenette import Archive, obtain_imagenette
import lrp.data.imagenette
url, root, size, moment, overwrite = sys.argv[1:]
calls = 0
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
def step(name, done, total):
    global calls
    calls += name == "unpacking"
    if moment.isdigit() and calls == int(moment):
        die()
if moment in ("checked", "recorded"):
    setattr(lrp.data.imagenette, {"checked": "_lacking", "recorded": "_record"}[moment], die)
rename, renamed = os.rename, []
def renaming(*args):
    if moment == "renaming" and len(renamed) == int(overwrite):
        die()
    renamed.append(rename(*args))
os.rename = renaming
archive = Archive("tiny (160px)", "tiny2-160.tgz", int(size), 6, 2, ("n01440764", "n02102040"), publisher=url)
obtain_imagenette(archive, Path(root), progress=step, overwrite=bool(int(overwrite)))
"""


@pytest.mark.parametrize("moment", ["1", "9", "16", "checked", "recorded", "renaming"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_run_leaves_the_whole_data_set_or_none(server, tmp_path, moment, overwrite):
    if overwrite:
        obtain_imagenette(published(server), tmp_path)
        (tmp_path / FOLDER / "mine").write_text("")
    run = [
        sys.executable,
        "-c",
        CHILD,
        server.url,
        str(tmp_path),
        str(len(server.body)),
        moment,
        str(int(overwrite)),
    ]
    assert subprocess.run(run, capture_output=True).returncode == -signal.SIGKILL
    place, left = tmp_path / FOLDER, [p.name for p in tmp_path.iterdir()]
    assert f".{FOLDER}.unpacking" in left
    assert place.exists() == (overwrite and moment != "renaming")
    if place.exists():
        assert (place / "mine").exists()
    if overwrite and moment == "renaming":  # the old one is there again even if the next run fails
        (tmp_path / f"{FOLDER}.tgz").write_bytes(PAGE)
        message(obtain_imagenette, published(server), tmp_path, overwrite=True)
        assert (place / "mine").exists()
        (tmp_path / f"{FOLDER}.tgz").write_bytes(server.body)
    assert obtain_imagenette(published(server), tmp_path, overwrite=overwrite).fresh
    assert set(files(tmp_path)) == set(FILES) | BESIDE
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({FOLDER} | BESIDE)
    assert len(server.asked) == 1


def test_an_interrupted_run_tidies_up(server, tmp_path):
    def interrupt(step: str, done: int, total: int | None) -> None:
        if step == "unpacking":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain_imagenette(published(server), tmp_path, progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == [f"{FOLDER}.tgz"]


def test_a_replacement_that_fails_puts_the_old_folder_back(server, tmp_path, monkeypatch):
    obtain_imagenette(published(server), tmp_path)
    (tmp_path / FOLDER / "mine").write_text("")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).parent.name == "new":
            raise OSError(5, "Input/output error", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    assert message(obtain_imagenette, published(server), tmp_path, overwrite=True) == (
        f"tiny (160px): {tmp_path}/.{FOLDER}.unpacking/new/{FOLDER} cannot be read or written: Input/output error."
    )
    assert (tmp_path / FOLDER / "mine").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({FOLDER} | BESIDE)


def test_two_runs_at_once(server, tmp_path):
    room = tmp_path / f".{FOLDER}.unpacking"
    room.mkdir()
    (room / "theirs").write_text("")
    with Lock(tmp_path / FOLDER):
        assert message(obtain_imagenette, published(server), tmp_path, kind=BusyError) == (
            f"{tmp_path / FOLDER} is being written by another run (process {os.getpid()}); wait for it or choose another "
            "--root"
        )
        assert (room / "theirs").exists() and not server.asked
    obtain_imagenette(published(server), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({FOLDER} | BESIDE)


@pytest.mark.parametrize("by_hand, needed", [(False, "198"), (True, "104")])
def test_a_disk_without_room(server, tmp_path, monkeypatch, by_hand, needed):
    usage = shutil.disk_usage(tmp_path)._replace(free=100 * MB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    if by_hand:
        (tmp_path / f"{FOLDER}.tgz").write_bytes(server.body)
    assert message(obtain_imagenette, published(server, size=99_000_000), tmp_path) == (
        f"tiny (160px) needs about {needed} MB in {tmp_path}, 100 MB are free: free some, choose a smaller --size, "
        "or give a --root on another disk."
    )
    assert not server.asked
    obtain_imagenette(published(server), tmp_path)


def test_a_disk_that_fills_up(server, tmp_path, monkeypatch):
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert message(obtain_imagenette, published(server), tmp_path) == (
        f"tiny (160px): {tmp_path} cannot be read or written: No space left on device."
    )
    assert [p.name for p in tmp_path.iterdir()] == [f"{FOLDER}.tgz"]


def test_a_root_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    came = message(obtain_imagenette, published(server), tmp_path / "file" / "data")
    assert re.fullmatch(
        rf"tiny \(160px\): {tmp_path}/file.* cannot be read or written: (Not a directory|File exists)\.", came
    )


# --- what is published --------------------------------------------------------------------------------------


def test_the_published_archives():
    assert len(ARCHIVES) == 6
    assert {a.publisher + a.file for a in ARCHIVES.values()} == {
        f"https://s3.amazonaws.com/fast-ai-imageclas/image{name}2{size}.tgz"
        for name in ("nette", "woof")
        for size in ("", "-320", "-160")
    }
    for (name, size), archive in ARCHIVES.items():
        assert archive.title == f"{name} ({size})" and archive.folder + ".tgz" == archive.file
        counts = {"imagenette": (9469, 3925), "imagewoof": (9025, 3929)}[name]
        assert (archive.train, archive.val) == counts
        assert (archive.md5 is None) == (name == "imagewoof")
        assert len(archive.classes) == 10 and set(archive.classes) <= set(imagenet_wnids())
        assert archive.limit <= {"full": 1.9e9, "320px": 4.2e8, "160px": 1.2e8}[size]


def test_imagenette_is_the_one_that_torchvision_knows():
    theirs = pytest.importorskip("torchvision.datasets.imagenette").Imagenette
    for size, (url, md5) in theirs._ARCHIVES.items():
        archive = ARCHIVES["imagenette", size]
        assert (archive.publisher + archive.file, archive.md5) == (url, md5)
        assert archive.classes == tuple(theirs._WNID_TO_CLASS)


@pytest.mark.parametrize("name", ["imagenette", "imagewoof"])
def test_the_classes_are_those_that_the_comments_say(name):
    source = Path(lrp.data.imagenette.__file__).read_text().split(f"_{name.upper()} = (")[1].split("\n)")[0]
    commented = dict(re.findall(r'"(n\d{8})",  # (.+)', source))
    names = dict(zip(imagenet_wnids(), imagenet_names(), strict=True))
    assert commented == {wnid: names[wnid] for wnid in ARCHIVES[name, "full"].classes}


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def run(server, monkeypatch) -> Callable[..., Any]:
    app = typer.Typer()
    app.command(epilog=f"Example: {command.example}")(guarded_command(command))

    def run(*arguments: str) -> Any:
        monkeypatch.setitem(ARCHIVES, ("imagenette", "160px"), published(server))
        return CliRunner().invoke(app, list(arguments))

    return run


def test_the_command(run, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run("imagenette", "--size", "160px")
    assert first.exit_code == 0, first.output
    assert first.stdout == f"data/{FOLDER}: 6 + 2 photos (train + val) of 2 classes, unpacked\n"
    assert first.stderr == f"tiny (160px): about 0 MB from {server.url}{FOLDER}.tgz to data\n"
    second = run("imagenette", "--size", "160px", "--root", "data")
    assert (second.exit_code, second.stderr) == (0, "")
    assert (
        second.stdout == f"data/{FOLDER}: 6 + 2 photos (train + val) of 2 classes, already there, complete\n"
    )
    third = run("imagenette", "--size", "160px", "--overwrite", "--json")
    assert json.loads(third.stdout) == {
        "name": "imagenette", "size": "160px", "folder": f"data/{FOLDER}", "status": "unpacked", "classes": 2,
        "train": 6, "val": 2, "sha256": hashlib.sha256(server.body).hexdigest(),
    }  # fmt: skip
    assert json.loads(run("imagenette", "--size", "160px", "--json").stdout)["status"] == "kept"


def test_the_commands_errors(run, server, tmp_path):
    server.body = PAGE
    failed = run("imagenette", "--size", "160px", "--root", str(tmp_path))
    assert failed.exit_code == 1 and failed.stdout == ""
    assert failed.stderr.splitlines()[-1].startswith(
        "lrp: tiny (160px): tiny2-160.tgz (about 0 MB) could not be fetched"
    )
    for arguments in (["mnist"], ["imagenette", "--size", "1px"], []):
        assert run(*arguments).exit_code == 2
    assert "Example: lrp data imagenette" in run("--help").stdout


def test_a_bar_is_shown_to_a_person(run, server, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich: as on a terminal
    shown = run("imagenette", "--size", "160px", "--root", str(tmp_path))
    assert "downloading" in shown.stderr and "unpacking" in shown.stderr
    assert shown.stdout == f"{tmp_path / FOLDER}: 6 + 2 photos (train + val) of 2 classes, unpacked\n"


def test_the_command_needs_no_torch():
    code = "import sys, lrp.cli.data, lrp.data.imagenette; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
