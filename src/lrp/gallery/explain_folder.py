"""`lrp.explain_folder`: files and folders of photos through one model, a result for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lrp.errors import ImageError
from lrp.gallery.gallery import Gallery
from lrp.gallery.options import DEFAULT_OPTIONS, ExplainOptions
from lrp.gallery.results import Result, find
from lrp.models.catalogue import PACKAGED
from lrp.models.loading import LoadedModel

Advance = Callable[[int, int], None]


def explain_folder(
    paths: str | Path | Sequence[str | Path],
    output: str | Path,
    model: str | Path | LoadedModel = PACKAGED,
    target: Any = "predicted",
    options: ExplainOptions = DEFAULT_OPTIONS,
    *,
    advance: Advance = lambda done, total: None,
) -> Iterator[Result]:
    """Explain photos and write for each a picture with its heatmap beside it; yields one result for each file found.

    for result in lrp.explain_folder("photos", "pictures", model="vgg19", target="top3"):
        print(result.status, result.path, result.output)

    The files are found and the model is loaded by the call; the photos are explained as the results are taken. A file
    that cannot be read stops nothing. What is up to date is kept, so that the same call goes on after an interruption.

    Args:
        paths: photos, or folders of them; of a folder the tree below it is kept in `output`. What lies in `output`
            counts only if it is named.
        output: folder of the pictures.
        model: a name as `load_model` takes it, or what it returns; it is moved to the options' device.
        target: "predicted"; "true" (the class that the photo's folder names); a class, its index, "topK"; "A-vs-B" or a
            `Contrast`; several as "a,b" or a list: a heatmap for each.
        options: how to explain, draw and save.
        advance: called with (1, number of files) after each file.

    Raises:
        ImageError: there is nothing at a path, or no file below them.
        TargetError: no such class.
        ModelError: the model cannot be loaded.
        OptionError: there is no such device.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    found = find(given, Path(output))
    if not found:
        raise ImageError(f"no files below {', '.join(map(str, given))}.")
    gallery = Gallery.of(model, options, target)

    def results() -> Iterator[Result]:
        for result in gallery.run(found, Path(output)):
            advance(1, len(found))
            yield result

    return results()
