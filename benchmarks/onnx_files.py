"""Exported explanation programs in onnxruntime: error relative to torch, size, speed.

    python benchmarks/onnx_files.py [--models vgg16,resnet50,efficientnet_lite0] [--write]

`epsilon_plus_flat` on photos of scikit-image, in batches of 1 and 3 from one file. Errors are relative (L2): of
onnxruntime to torch, both in float32; for comparison, of torch in float32 to torch in float64. EfficientNet-Lite0
has its ImageNet weights, the others random ones. --write writes the table into docs/export.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

import lrp
import page
from lrp.engine.onnx.onnx_file import write_onnx
from lrp.models.catalogue import PACKAGED
from precision import photos

PAGE = page.PAGE.parent / "export.md"
MUST = 1e-4
ROUNDS = 5


def error(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """Relative error (L2), and the largest difference relative to the largest value."""
    difference = found.double() - truth.double()
    return (
        float(difference.norm() / truth.double().norm()),
        float(difference.abs().max() / truth.double().abs().max()),
    )


def row(name: str, folder: Path) -> list[str]:
    import onnxruntime

    torch.manual_seed(0)
    model, pre, _ = lrp.load_model(name, pretrained=name == PACKAGED)
    x = torch.stack([pre(lrp.open_photo(path).pixels) for path in photos(None, 3)])
    explainer = lrp.Explainer(model, "epsilon_plus_flat")
    file = write_onnx(explainer, x[:1], folder / f"{name}.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.path, options, providers=["CPUExecutionProvider"])
    ours = explainer(x)
    worst = [0.0, 0.0, 0.0]
    for part in (slice(0, 1), slice(0, 3)):
        logits, relevance = (torch.from_numpy(v) for v in session.run(None, {"image": x[part].numpy()}))
        found = (error(logits, ours.logits[part])[0], *error(relevance, ours.relevance[part]))
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
    taken: dict[str, list[float]] = {"ort": [], "torch": []}
    for _ in range(ROUNDS):
        for what, run in (
            ("ort", lambda: session.run(None, {"image": x.numpy()})),
            ("torch", lambda: explainer(x)),
        ):
            begin = time.perf_counter()
            run()
            taken[what].append(time.perf_counter() - begin)
    times = statistics.median(a / b for a, b in zip(taken["ort"], taken["torch"], strict=True))
    truth = lrp.Explainer(model, "epsilon_plus_flat", dtype=torch.float64)(x.double(), ours.target.tolist())
    own = error(ours.relevance, truth.relevance)
    mark = "" if worst[0] <= MUST and worst[1] <= MUST else " (missed)"
    return [
        name, f"{file.bytes / 1e6:.0f} MB", f"{worst[0]:.0e}", f"{worst[1]:.0e}{mark}", f"{worst[2]:.0e}", f"{own[0]:.0e}", f"{own[1]:.0e}",
        f"{times:.2f}",
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=f"vgg16,resnet50,{PACKAGED}")
    parser.add_argument("--write", action="store_true", help="into docs/export.md")
    chosen = parser.parse_args()
    head = [
        "model", "file", "logits", "relevance", "relevance, one pixel", "torch to float64", "the same, one pixel", "time, torch = 1",
    ]  # fmt: skip
    rows = []
    for name in chosen.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, Path(folder)))
        print(*rows[-1], flush=True)
    if chosen.write:
        page.write("onnx", page.table(head, rows), PAGE)


if __name__ == "__main__":
    main()
