"""`lrp.explain_folder`: explain files and folders of photos with one model; one result for each file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lrp.errors import ImageError
from lrp.gallery.gallery import Gallery
from lrp.gallery.options import DEFAULT_OPTIONS, ExplainOptions
from lrp.gallery.results import Result, find_all_but_results
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
    """Explain photos and write, for each, a picture with its heatmap beside it; yields one result per file found.

    for result in lrp.explain_folder("photos", "pictures", model="vgg19", target="top3"):
        print(result.status, result.path, result.output)

    The call finds the files and loads the model; each photo is explained when its result is requested. A file that
    cannot be read does not stop the run. Up-to-date results are kept, so the same call resumes after an interruption.

    Args:
        paths: photos, or folders of them; `output` repeats a folder's directory tree. Files inside `output` are
            explained only if they are named here.
        output: folder of the pictures.
        model: a name that `load_model` accepts, or a `LoadedModel`; it is moved to the options' device.
        target: "predicted"; "true" (the class that the photo's folder names); a class, its index, "topK"; "A-vs-B" or a
            `Contrast`; several as "a,b" or a list: one heatmap for each.
        options: how to explain, draw and save.
        advance: called with (1, number of files) after each file.

    Raises:
        ImageError: a path does not exist, or there is no file below the paths.
        TargetError: no such class.
        ModelError: the model cannot be loaded.
        OptionError: there is no such device.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    found = find_all_but_results(given, Path(output))
    if not found:
        raise ImageError(f"no files below {', '.join(map(str, given))}.")
    gallery = Gallery.of(model, options, target)

    def results() -> Iterator[Result]:
        for result in gallery.run(found, Path(output)):
            advance(1, len(found))
            yield result

    return results()
