"""Downloads: https only, limited in size, resumed after an interruption, verified before the file gets its name."""

import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lrp.errors import LrpError, error_reason
from lrp.storage.atomic import move_into_place

TIMEOUT = 10.0  # seconds without data; torch.hub's downloader has no timeout
MEGABYTE = 2**20  # torchvision states file sizes in this unit

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes so far and in total, None if the server does not state that."""


class DownloadError(LrpError):
    """Why a download failed, as a clause: the caller adds what was wanted, and where it belongs."""


def fetch(
    url: str,
    destination: Path,
    proof: Callable[[Path], None],
    progress: Progress,
    *,
    decisive: bool = True,
    limit: int | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Fetch `url` to `destination`, which appears only when its content is verified.

    The bytes received so far are in `NAME.part` next to it, their version as the server states it (ETag and length)
    in `NAME.part.json`. A later call resumes from there, or starts again if the version has changed.

    Args:
        url: https; plain http only from 127.0.0.1.
        proof: called with the downloaded file; raises DownloadError if it is wrong, and the file is deleted.
        decisive: `proof` would detect a file that is joined from two versions; if False, a download is resumed
            only if the server states its version.
        limit: a download of more bytes is refused.
        timeout: in seconds without data.

    Raises:
        DownloadError: the reason alone, as a clause.
    """
    part, version = _parts(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _stream(url, part, version, progress, decisive, limit, timeout)
        try:
            proof(part)
        except DownloadError:
            part.unlink()
            version.unlink(missing_ok=True)
            raise
        move_into_place(part, destination)
        version.unlink(missing_ok=True)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(error_reason(error)) from error


def download_begun(destination: Path) -> int:
    """The number of bytes from which an interrupted `fetch` can be resumed."""
    part, _ = _parts(destination)
    return part.stat().st_size if part.exists() else 0


def _parts(destination: Path) -> tuple[Path, Path]:
    # Not a draft of `atomic`, whose name is random: this file must be found again.
    return destination.with_name(f"{destination.name}.part"), destination.with_name(
        f"{destination.name}.part.json"
    )


def _stream(
    url: str,
    part: Path,
    version: Path,
    progress: Progress,
    decisive: bool,
    limit: int | None,
    timeout: float,
) -> None:
    """Write what `url` sends into `part`, resuming an interrupted attempt."""
    there = part.stat().st_size if part.exists() else 0
    known = _read(version) if there else {}
    if not (known or decisive):
        there = 0
    answer = _ask(url, there, known, timeout)
    if answer is None:  # the server has no more bytes: the file is complete, and `proof` decides
        return
    with answer:
        resumed = answer.status == 206
        done = there if resumed else 0
        length = answer.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        if limit is not None and (total or 0) > limit:
            raise DownloadError(
                f"the server announces {_megabytes(total or 0)}, at most {_megabytes(limit)} were expected"
            )
        with open(part, "ab" if resumed else "wb") as file:
            _write(version, answer.headers.get("ETag", ""), total)  # only when the old part is overwritten
            progress(done, total)
            while chunk := answer.read(MEGABYTE):
                done += len(chunk)
                if limit is not None and done > limit:
                    part.unlink()
                    version.unlink(missing_ok=True)
                    raise DownloadError(
                        f"more came than the {_megabytes(limit)} that were expected, and was deleted"
                    )
                file.write(chunk)
                progress(done, total)
    if total is not None and done < total:
        raise DownloadError(
            f"the connection ended after {done / MEGABYTE:.1f} of {total / MEGABYTE:.1f} MB, "
            "a second attempt goes on from there"
        )


def _ask(url: str, begun: int, known: dict[str, Any], timeout: float) -> http.client.HTTPResponse | None:
    """The server's answer: 206 with the bytes after the first `begun`, or 200 with all. None: there are no more."""
    opener = urllib.request.build_opener(_PermittedRedirects)
    for start in (begun, 0) if begun else (0,):
        request = urllib.request.Request(_permitted(url), headers={"User-Agent": "lrp"})
        if start:
            request.add_header("Range", f"bytes={start}-")
            if known:
                request.add_header("If-Range", known["etag"])
        try:
            answer: http.client.HTTPResponse = opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not start:
                raise
            if _total(error.headers.get("Content-Range", "")) in (None, start):
                return None
            continue  # the file is now shorter than the local part of it
        if answer.status != 206:
            return answer
        came = answer.headers.get("Content-Range", "")
        same = not known or (answer.headers.get("ETag"), _total(came)) == (known["etag"], known["length"])
        if start and came.startswith(f"bytes {start}-") and same:
            return answer
        answer.close()  # a part of another version, or not the requested part
    raise DownloadError("the server sends parts of the file, though the whole was asked for")


def _total(content_range: str) -> int | None:
    """1000 of "bytes 0-99/1000" and of "bytes */1000"."""
    found = re.search(r"/(\d+)$", content_range)
    return int(found[1]) if found else None


def _read(version: Path) -> dict[str, Any]:
    """What `_write` wrote; {} if nothing usable is there."""
    try:
        known = json.loads(version.read_text())
        return known if {"etag", "length"} <= known.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(version: Path, etag: str, total: int | None) -> None:
    if etag and not etag.startswith("W/"):  # a weak ETag may stay the same after small changes
        version.write_text(json.dumps({"etag": etag, "length": total}))
    else:
        version.unlink(missing_ok=True)


class _PermittedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect from https to another scheme."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise DownloadError(f"{newurl} is not https")
        return super().redirect_request(req, fp, code, msg, headers, _permitted(newurl))


def _permitted(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname == "127.0.0.1"):
        return url
    raise DownloadError(f"{url} is not https")


def _megabytes(count: int) -> str:
    return f"{count / MEGABYTE:.1f} MB"
