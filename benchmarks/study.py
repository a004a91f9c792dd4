"""Time and memory of `lrp evaluate`, compared with its two parts, and for many photos compared with few.

    python benchmarks/study.py [--rounds 5] [--models efficientnet_lite0,resnet50] [--data FOLDER]

Decoding alone, inference alone and `evaluate` are interleaved in one process and compared within a round, so that
changes of the machine's speed affect all three equally; medians over rounds. Decoding runs in parallel with inference,
but on a CPU both use the same cores: the whole may take as long as the sum of its parts plus 15 % (the goal).
Memory is measured in separate processes, as growth of the peak resident set over the loaded model: the minimum of
three. It must be the same for four times as many photos.

Without --data, a few hundred photos of 500 x 375 pixels are cropped and mirrored from scikit-image's.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lrp.cli.demo import write_demo_photos
from lrp.data.data_set import DataSet
from lrp.models.catalogue import PACKAGED
from lrp.models.loading import LoadedModel, load_model
from lrp.study.evaluate import BATCH, Classifier, evaluate
from speed import status

GOAL = 1.15
PEAKS = 3  # repetitions: memory held by the threads at the same time adds up to 100 MiB at random
SIZE = 500, 375


def generate(folder: Path, count: int) -> Path:
    """`count` different JPEGs in class folders; deterministic."""
    write_demo_photos(folder / "whole")
    sources = [sample.file for sample in DataSet.open(folder / "whole")]
    random = np.random.default_rng(0)
    for number in range(count):
        source = sources[number % len(sources)]
        with Image.open(source) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        side = random.uniform(0.5, 0.9)  # fraction of each side in the crop
        left, top = random.uniform(0, 1 - side, 2)
        seen = (left * width, top * height, (left + side) * width, (top + side) * height)
        image = image.resize(SIZE, Image.Resampling.BICUBIC, seen)
        if number % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        place = folder / "photos" / source.parent.name / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place, quality=90)
    return folder / "photos"


def times(name: str, data: DataSet, rounds: int, workers: int, output: Path) -> None:
    loaded = load(name)
    loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in evaluate
    classifier = Classifier(loaded, {})
    samples = list(data)
    with ThreadPoolExecutor(workers) as pool:
        read = list(pool.map(classifier.read, samples))
    crops = np.stack([crop for crop in read if isinstance(crop, np.ndarray)])
    classifier.confidences(crops[:BATCH])  # warm-up: allocates

    def decode() -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(classifier.read, samples):
                pass

    def infer() -> None:
        for first in range(0, len(crops), BATCH):
            classifier.confidences(crops[first : first + BATCH])

    def whole() -> None:
        evaluate(data, loaded, output, name=name, workers=workers, overwrite=True)

    runs: dict[str, Callable[[], None]] = {"decoding": decode, "inference": infer, "evaluate": whole}
    taken: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            begin = time.perf_counter()
            run()
            taken[label].append(time.perf_counter() - begin)
    for label, seconds in taken.items():
        middle = statistics.median(seconds)
        print(f"  {label:<10} {middle:6.2f} s   {len(samples) / middle:6.1f} photos/s")
    ratios = [c / (a + b) for a, b, c in zip(*taken.values(), strict=True)]
    print(
        f"  evaluate / (decoding + inference): {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}; the goal is {GOAL} at most)",
        flush=True,
    )


def load(name: str) -> LoadedModel:
    """With pretrained weights only if they need no download: weights do not affect the cost."""
    return load_model(name, pretrained=name == PACKAGED)


def memory(name: str, data: DataSet, folder: Path) -> None:
    found = []
    for copies in (1, 4):
        links = folder / f"{copies}"
        if not links.exists():
            link(data, links, copies)
        command = [sys.executable, __file__, "--peak", str(links), "--models", name]
        done = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True) for _ in range(PEAKS)]
        grown = sorted(int(run.stdout) for run in done)
        found.append(f"{grown[0]} to {grown[-1]} MiB for {copies * sum(1 for _ in data)} photos")
    print(f"  peak memory over the loaded model: {', '.join(found)}", flush=True)


def link(data: DataSet, folder: Path, copies: int) -> None:
    """The data set `copies` times, as links: more files without more disk space."""
    for number, sample in enumerate(data):
        for copy in range(copies):
            place = folder / sample.category / f"{copy}-{number}{sample.file.suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(sample.file.resolve())


def peak(name: str, folder: Path) -> int:
    """Growth of the peak memory, in MiB, while a folder of links is evaluated."""
    loaded, data = load(name), DataSet.open(folder, follow_links=True)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the current memory
    held = status("VmRSS")
    with tempfile.TemporaryDirectory() as place:
        evaluate(data, loaded, Path(place, "r.csv"))
    return (status("VmHWM") - held) // 1024


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=f"{PACKAGED},resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="a folder of class folders; none: generated photos")
    parser.add_argument("--photos", type=int, default=200, help="how many are generated")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak(chosen.models, chosen.peak))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = DataSet.open(chosen.data or generate(folder, chosen.photos))
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads and {chosen.workers} that decode, "
            f"batch {BATCH}, {sum(1 for _ in data)} photos"
        )
        for name in chosen.models.split(","):
            print(name)
            times(name, data, chosen.rounds, chosen.workers, folder / "r.csv")
            memory(name, data, folder)


if __name__ == "__main__":
    main()
