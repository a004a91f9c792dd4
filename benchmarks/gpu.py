"""Speed on a GPU: time and memory relative to the gradient's, VGG16 images per second, latency of one image.

    PYTHONPATH=src python benchmarks/gpu.py [--rounds 30] [--write]

Needs only torch, torchvision and a CUDA device. TF32 is on for convolutions and matrix products, for all columns; times
are measured between CUDA events, after a warm-up.
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import torch

import page
from speed import GOALS, Run, explainer, gradient, model_and_images

BATCHES = (1, 64)


def seconds(run: Run, rounds: int) -> float:
    for _ in range(5):
        run()
    taken = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end) / 1000)
    return statistics.median(taken)


def peak(run: Run) -> float:
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**20


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="vgg16,resnet50")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "no CUDA device: make bench-gpu measures where there is one; make bench measures the CPU."
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    rows = []
    for name in chosen.models.split(","):
        for batch in BATCHES:
            model, x = (part.cuda() for part in model_and_images(name, batch))
            runs = {"gradient": gradient(model, x)}
            for what in GOALS:
                made = explainer(model, what)
                runs[what] = lambda made=made, x=x: made(x, 0)  # type: ignore[misc, operator]
                fast = explainer(model, what, compile=True)
                runs[f"{what}, compiled"] = lambda fast=fast, x=x: fast(x, 0)  # type: ignore[misc, operator]
            found = {what: (seconds(run, chosen.rounds), peak(run)) for what, run in runs.items()}
            base = found["gradient"]
            for what, (time, memory) in found.items():
                rows.append([
                    name, str(batch), what, f"{1000 * time:.2f}", f"{time / base[0]:.2f}", f"{batch / time:.0f}", f"{memory / base[1]:.2f}",
                ])  # fmt: skip
                print(*rows[-1], flush=True)
    device = torch.cuda.get_device_name()
    head = ["model", "images", "what", "ms", "time, gradient = 1", "images/s", "peak memory, gradient = 1"]
    text = (
        f"{device}, torch {torch.__version__}, TF32, medians of {chosen.rounds}.\n\n{page.table(head, rows)}"
    )
    if chosen.write:
        page.write("gpu", text)


if __name__ == "__main__":
    main()
