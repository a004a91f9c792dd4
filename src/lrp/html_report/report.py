"""`lrp.report`: an HTML report of tables of predictions and of the models that made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lrp.html_report.write import ROWS, Progress, Report, write_report
from lrp.study.predictions import read_predictions

if TYPE_CHECKING:
    from lrp.gallery.options import ExplainOptions
    from lrp.models.loading import LoadedModel


def report(
    results: str | Path,
    output: str | Path | None = None,
    *,
    compare: str | Path | None = None,
    explain: int = 200,
    models: tuple[str | Path | LoadedModel | None, str | Path | LoadedModel | None] = (None, None),
    options: ExplainOptions | None = None,
    rows: int = ROWS,
    max_mb: float = 25.0,
    root: str | Path | None = None,
    command: str = "",
    advance: Progress = lambda done, total, what: None,
) -> Report:
    """Write one HTML file that shows a table of predictions, or two models on the same photos, with heatmaps.

    Args:
        results: a CSV of `lrp evaluate`.
        output: the HTML file, written atomically; None: RESULTS_report.html beside the table.
        compare: a second table of the same photos, for example of the retrained model.
        explain: how many photos get heatmaps, mistakes first; 0: none, and no model is loaded.
        models: the model of each table, if it is not where its rows say: a name, or a `LoadedModel`.
        options: how to explain: composite, size, device, ...
        rows: how many photos are listed, mistakes first; the statistics are always of all photos.
        max_mb: the largest size of the file, in million bytes. To fit, thumbnails are reduced first, then the
            resolution of the maps, last the number of explained photos.
        root: where the photos are now, if they were moved.
        command: the user's command, shown in the report.
        advance: called with (number done since the last call, total, name of the step).

    Raises:
        PredictionsError: a table cannot be read, or the tables are not of the same photos.
        ModelError: a table's model cannot be loaded, or has changed.
        CompositeError: rules whose heatmap is the same for every class.
        ReportError: jinja2 is not installed, the file cannot be written, or even without pictures exceeds `max_mb`.
    """
    results = Path(results)
    galleries = []
    if explain:
        from lrp.gallery.options import ExplainOptions  # torch, only where it is needed
        from lrp.study.table_model import table_model_gallery

        for table, model, option in zip(
            (results, compare), models, ("--model", "--compare-model"), strict=True
        ):
            if table is not None:
                read = read_predictions(table)
                galleries.append(table_model_gallery(table, read, model, options or ExplainOptions(), option))
    return write_report(
        results, results.with_name(f"{results.stem}_report.html") if output is None else output, retrained=compare,
        galleries=galleries, explain=explain, rows=rows, max_mb=max_mb, root=root, command=command, progress=advance,
    )  # fmt: skip
