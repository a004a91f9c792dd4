"""Fingerprints of results: a hash of the photo, the model, the target, and how the picture is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lrp
from lrp.errors import TargetError
from lrp.gallery.formats import FORMATS
from lrp.gallery.options import ExplainOptions
from lrp.gallery.request import Request
from lrp.models.loading import LoadedModel
from lrp.pictures import heatmap
from lrp.pictures.photos import Found, Photo


def result_fingerprint(
    identity: Mapping[str, Any],
    loaded: LoadedModel,
    options: ExplainOptions,
    photo: Photo,
    request: Request,
    true: int | None,
    scale_digest: str,
) -> str:
    """In hex. `true`: the class that the photo's folder names; `scale_digest`: of all photos on one colour scale."""
    facts = {
        **identity,
        "lrp": lrp.__version__,
        "photo": photo.digest,
        **({"read as": photo.notes} if photo.notes else {}),  # by another rule, the same file has other pixels
        "target": request.text if _text_is_complete(request, loaded.class_names) else repr(request),
        "true": true,
        "preprocessing": loaded.preprocessing.to_dict(),
        "drawing": {
            "style": options.style, "percentile": options.percentile, "shared_scale": options.shared_scale,
        },
        "all": scale_digest,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _text_is_complete(request: Request, class_names: Sequence[str]) -> bool:
    """Whether the request's text defines it completely: not if the caller set the parts, titles or heading."""
    try:
        return Request.parse(request.text, class_names) == request
    except TargetError:
        return False


def digest_of_all(found: Sequence[Found]) -> str:
    """With a shared colour scale each picture depends on all photos, so their digest enters its fingerprint."""
    digest = hashlib.sha256()
    for file in found:
        try:
            with open(file.path, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        except OSError:
            digest.update(b"unreadable")
    return digest.hexdigest()


def facts_with_fingerprint(picture: Path, fingerprint: str, save: Sequence[str]) -> dict[str, Any] | None:
    """The facts of an earlier result with this fingerprint, if all its files exist."""
    if "png" not in save:
        return None
    metadata = heatmap.read_heatmap_metadata(picture)
    if metadata.get("fingerprint") != fingerprint:
        return None
    others = [FORMATS[name] for name in save if name != "png"]
    if any(one.fingerprint(picture.with_suffix(one.suffix)) != fingerprint for one in others):
        return None
    return json.loads(metadata["facts"])
