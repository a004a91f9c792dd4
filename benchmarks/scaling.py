"""Cost of an explanation, relative to one input gradient, for growing batch, resolution and depth.

    python benchmarks/scaling.py [--rounds 3] [--write]

Time and peak memory of `epsilon_plus_flat` divided by those of the gradient, for the same model and images: ResNet18
with 1 to 64 images, ResNet18 with 64 to 512 pixels, ResNets of 18 to 152 layers. The ratio should be constant.
--write writes the plot and the table into docs/.
"""

from __future__ import annotations

import argparse
import warnings

import page
from speed import gradient, interleaved, model_and_images, ours, peak_elsewhere, ratio

WHAT = "epsilon_plus_flat"
SERIES = {
    "images (ResNet18, 224 px)": [("resnet18", n, 224, n) for n in (1, 2, 4, 8, 16, 32, 64)],
    "pixels a side (ResNet18, 4 images)": [("resnet18", 4, s, s) for s in (64, 128, 224, 320, 512)],
    "layers (ResNet, 2 images, 224 px)": [(f"resnet{d}", 2, 224, d) for d in (18, 34, 50, 101, 152)],
}
PLOT = page.PAGE.parent / "pictures" / "scaling.png"


def measured(name: str, batch: int, side: int, rounds: int) -> tuple[float, float]:
    model, x = model_and_images(name, batch, side)
    taken = interleaved({"gradient": gradient(model, x), WHAT: ours(model, x, WHAT)}, rounds)
    memory = [peak_elsewhere(name, what, batch, side, repeats=1) for what in (WHAT, "gradient")]
    return ratio(taken, WHAT), memory[0] / memory[1]


def plot(found: dict[str, list[tuple[int, float, float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        places = [p[0] for p in points]
        axes.plot(places, [p[1] for p in points], "o-", color="#2f6fb0", label="time")
        axes.plot(places, [p[2] for p in points], "s--", color="#c2571a", label="peak memory")
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(p) for p in places], minor=False)
        axes.set_xlabel(title)
        axes.set_ylim(0, 2.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("gradient = 1")
    figure.axes[0].legend(frameon=False)
    figure.savefig(PLOT, metadata={"Software": None})


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/")
    chosen = parser.parse_args()
    found = {}
    for title, cases in SERIES.items():
        found[title] = []
        for name, batch, side, place in cases:
            found[title].append((place, *measured(name, batch, side, chosen.rounds)))
            print(title, *(f"{value:.2f}" for value in found[title][-1]), flush=True)
    rows = [
        [
            title,
            ", ".join(f"{p}: {t:.2f}" for p, t, _ in points),
            ", ".join(f"{p}: {m:.2f}" for p, _, m in points),
        ]
        for title, points in found.items()
    ]
    if chosen.write:
        plot(found)
        page.write(
            "scaling", page.table(["as this grows", "time, gradient = 1", "peak memory, gradient = 1"], rows)
        )


if __name__ == "__main__":
    main()
