"""Difference between an explanation in float32, exact or mixed, and the same in float64, on real photos.

    python benchmarks/precision.py [--photos FOLDER] [--count 16] [--models efficientnet_lite0,vgg16] [--write]

EfficientNet-Lite0 with its ImageNet weights, others with random ones; relevance summed over the channels. For each
photo: the relative error (L2), the rank correlation of the pixels, and the share of the 5 % most relevant pixels that
both have in common; the worst and the mean over the photos. Without --photos: crops of scikit-image's photos.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor

import lrp
import page
from faithfulness import rank_correlation
from lrp.models.catalogue import PACKAGED

PRESETS = (
    "epsilon_plus_flat",
    "epsilon_plus",
    "epsilon_gamma_box",
    "epsilon_gamma_wsquare",
    "epsilon_alpha2_beta1",
    "epsilon",
)


def photos(folder: Path | None, count: int) -> list[Path]:
    if folder is None:
        import tempfile

        from lrp.cli.demo import write_demo_photos

        folder = Path(tempfile.mkdtemp())
        write_demo_photos(folder)
    found = [one.path for one in lrp.pictures.photos.find_photos([folder])]
    return found[:: max(1, len(found) // count)][:count]


def compared(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two maps [N, H, W] -> relative error, rank correlation, share of the top 5 % in common; [N] each."""
    error = (found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    top = int(0.05 * truth[0].numel())
    chosen = [
        torch.zeros_like(t.flatten(1)).scatter(1, t.flatten(1).topk(top).indices, 1) for t in (found, truth)
    ]
    return error, rank_correlation(found, truth), (chosen[0] * chosen[1]).sum(1) / top


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--models", default=f"{PACKAGED},vgg16")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    chosen = parser.parse_args()
    files, rows = photos(chosen.photos, chosen.count), []
    for model in chosen.models.split(","):
        for preset in PRESETS:
            rows += errors(model, preset, files)
    head = [
        "model", "preset", "precision", "relative error, mean", "worst", "rank correlation, worst", "top 5 % in common, worst",
    ]  # fmt: skip
    text = (
        f"{len(files)} photos, against float64. EfficientNet-Lite0 has its ImageNet weights, others random ones.\n\n"
        f"{page.table(head, rows)}"
    )
    if chosen.write:
        page.write("precision", text)


def errors(model_name: str, preset_name: str, files: list[Path]) -> list[list[str]]:
    torch.manual_seed(0)
    model, pre, _ = lrp.load_model(model_name, pretrained=model_name == PACKAGED)
    preset = lrp.preset(preset_name, low=pre.low, high=pre.high)
    wanted, found = [], {precision: [] for precision in ("exact", "mixed")}  # type: ignore[var-annotated]
    truth = lrp.Explainer(copy.deepcopy(model).double(), preset)
    explainers = {precision: lrp.Explainer(model, preset, precision=precision) for precision in found}
    for path in files:  # one at a time: float64 takes much memory
        x = pre(lrp.open_photo(path).pixels)[None]
        true = truth(x.double())
        wanted.append(true.relevance.sum(1))
        for precision, explainer in explainers.items():
            found[precision].append(explainer(x, int(true.target[0])).relevance.sum(1).double())
    rows = []
    for precision, maps in found.items():
        error, rank, top = compared(torch.cat(maps), torch.cat(wanted))
        rows.append([
            model_name, f"`{preset_name}`", precision, f"{error.mean():.1e}", f"{error.max():.1e}", f"{rank.min():.5f}",
            f"{100 * top.min():.1f} %",
        ])  # fmt: skip
        print(*rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
