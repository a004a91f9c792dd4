"""Time and memory of one explanation, as multiples of one plain input gradient of the same model.

    python benchmarks/speed.py [--rounds 5] [--models vgg16,vgg19,resnet50] [--write]

All runs are interleaved in one process and compared within a round, so that changes of the machine's speed affect all
columns equally; medians over rounds. Weights are random, since they do not affect the cost. Memory is measured in
separate processes, as growth of the peak resident set over the loaded model. --write writes the tables into
docs/performance.md. Goals are beside the numbers: must, and aim, in bold if reached.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

import page

BATCH = 4
BOX = {"low": -2.2, "high": 2.7}
Run = Callable[[], object]

# row: (name in the table, must, aim); for ResNet50 only if different
GOALS = {
    "epsilon_plus_flat": (1.55, 1.45),
    "epsilon_plus_flat, mixed": (1.15, 1.0),
    "epsilon_gamma_box": (2.0, 1.6),
    "epsilon_alpha2_beta1": (2.3, 2.0),
    "epsilon": (1.2, 1.05),
}
RESNET = {"epsilon_plus_flat, mixed": (1.3, 1.0)}
PEERS = {
    "EpsilonPlusFlat": ("epsilon_plus_flat", 2.0, 3.0),
    "EpsilonGammaBox": ("epsilon_gamma_box", 3.5, 5.0),
}
MANY, MEMORY, CAPTURE = (0.6, 0.45), (1.1, 0.9), {"resnet50": (3.0, 1.5), "vit_b_16": (5.0, 2.5)}


def model_and_images(name: str, batch: int = BATCH, side: int = 224) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # only the gradient with respect to the input
    return model, torch.randn(batch, 3, side, side)


def gradient(model: torch.nn.Module, x: torch.Tensor) -> Run:
    def run() -> object:
        image = x.clone().requires_grad_()
        model(image)[:, 0].sum().backward()
        return image.grad

    return run


def explainer(model: torch.nn.Module, what: str, **settings: object) -> object:
    """An explainer by the name of a row: a preset, with ", mixed" appended for mixed precision."""
    import lrp

    preset, _, precision = what.partition(", ")
    return lrp.Explainer(model, lrp.preset(preset, **BOX), precision=precision or "exact", **settings)


def ours(model: torch.nn.Module, x: torch.Tensor, what: str) -> Run:
    made = explainer(model, what)
    return lambda: made(x, 0)


def with_health(model: torch.nn.Module, x: torch.Tensor) -> Run:
    made = explainer(model, "epsilon_plus_flat")
    return lambda: made(x, 0).health


def zennit(model: torch.nn.Module, x: torch.Tensor, composite: str) -> Run:
    from zennit import composites
    from zennit.attribution import Gradient
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    canonizer = VGGCanonizer() if type(model).__name__ == "VGG" else ResNetCanonizer()
    settings = BOX if composite == "EpsilonGammaBox" else {}
    chosen = getattr(composites, composite)(canonizers=[canonizer], **settings)
    start = torch.zeros(len(x), 1000)
    start[:, 0] = 1

    def run() -> object:
        with Gradient(model, chosen) as attributor:
            return attributor(x.clone().requires_grad_(), start)

    return run


def captum(name: str, x: torch.Tensor) -> Run:
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    model, _ = model_and_images(name)
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False  # captum's hooks cannot follow in-place operations
        if isinstance(module, torch.nn.AdaptiveAvgPool2d | torch.nn.BatchNorm2d):
            module.rule = EpsilonRule()  # type: ignore[assignment]
    attribution = LRP(model)
    return lambda: attribution.attribute(x.clone().requires_grad_(), target=0)


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round."""
    for run in runs.values():
        run()  # warm-up: captures, allocates
    taken: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            begin = time.perf_counter()
            run()
            taken[label].append(time.perf_counter() - begin)
    return taken


def ratio(taken: dict[str, list[float]], what: str, to: str = "gradient") -> float:
    return statistics.median(a / b for a, b in zip(taken[what], taken[to], strict=True))


def ratios(names: list[str], rounds: int) -> str:
    """The table of times relative to the gradient's."""
    measured = {}
    for name in names:
        model, x = model_and_images(name)
        runs = {"gradient": gradient(model, x)} | {what: ours(model, x, what) for what in GOALS}
        runs["with ledger and health"] = with_health(model, x)
        runs |= {f"zennit {composite}": zennit(model, x, composite) for composite in PEERS}
        runs["captum LRP"] = captum(name, x)
        measured[name] = interleaved(runs, rounds)
        print(name, {what: round(ratio(measured[name], what), 2) for what in runs}, flush=True)
    rows = []
    for what, goal in GOALS.items():
        cells = [
            page.mark(ratio(measured[n], what), *(RESNET.get(what, goal) if "resnet" in n else goal))
            for n in names
        ]
        rows.append([f"`{what}`", *cells, f"{goal[0]:g}", f"{goal[1]:g}"])
    for what in ("with ledger and health", *(f"zennit {c}" for c in PEERS), "captum LRP"):
        shown = f"`epsilon_plus_flat` {what}" if what.startswith("with") else what
        rows.append([shown, *(f"{ratio(measured[n], what):.2f}" for n in names), "", ""])
    for composite, (what, must, aim) in PEERS.items():
        gains = [ratio(measured[n], f"zennit {composite}", what) for n in names]
        cells = [
            f"**{g:.2f}**" if g >= aim else f"{g:.2f}" + (" (missed)" if g < must else "") for g in gains
        ]
        rows.append([f"zennit's time over ours, {composite}", *cells, f"{must:g}", f"{aim:g}"])
    return page.table(["time, gradient = 1", *names, "must", "aim"], rows)


def many(rounds: int) -> float:
    """Ten targets in one call compared with ten calls, VGG16, one image."""
    model, x = model_and_images("vgg16", 1)
    made = explainer(model, "epsilon_plus_flat")
    targets = list(range(10))
    runs = {"many": lambda: made.many(x, targets), "each": lambda: [made(x, target) for target in targets]}  # type: ignore[attr-defined]
    return ratio(interleaved(runs, rounds), "many", "each")


def peak(name: str, what: str, batch: int, side: int = 224) -> float:
    """Peak memory of one run in MiB, above that of the process with the model loaded and the program written."""
    model, x = model_and_images(name, batch, side)
    if what == "gradient":
        run = gradient(model, x)
        gradient(model, x[:1])()
    else:
        made = explainer(model, what)
        made(x[:1], 0)  # type: ignore[operator]
        run = lambda: made(x, 0)  # type: ignore[operator]  # noqa: E731
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # return free memory of the warm-up, which the run would use unmeasured
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the current memory
    held = status("VmRSS")
    run()
    return (status("VmHWM") - held) / 1024


def status(key: str) -> int:
    """A value of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def peak_elsewhere(name: str, what: str, batch: int, side: int = 224, repeats: int = 3) -> float:
    command = [
        sys.executable,
        __file__,
        "--peak",
        what,
        "--models",
        name,
        "--batch",
        str(batch),
        "--side",
        str(side),
    ]
    found = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(repeats)
    ]
    return statistics.median(found)


def memory() -> str:
    whats = ["gradient", *GOALS]
    found = {what: peak_elsewhere("vgg16", what, 8) for what in whats}
    rows = [
        [f"`{what}`", f"{found[what]:.0f}", page.mark(found[what] / found["gradient"], *MEMORY)]
        for what in GOALS
    ]
    head = ["VGG16, batch 8", "peak, MiB", f"gradient ({found['gradient']:.0f} MiB) = 1; must 1.1, aim 0.9"]
    return page.table(head, rows)


def captures() -> str:
    import lrp

    rows = []
    for name, goal in CAPTURE.items():
        model, x = model_and_images(name, 1)
        begin = time.perf_counter()
        lrp.Explainer(model, "epsilon_plus_flat").prepare(x)
        rows.append([name, page.mark(time.perf_counter() - begin, *goal), f"{goal[0]:g}", f"{goal[1]:g}"])
    return page.table(["capture, rules and program", "seconds", "must", "aim"], rows)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="vgg16,vgg19,resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=224, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak(chosen.models, chosen.peak, chosen.batch, chosen.side))
        return
    parts = [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, float32, random weights; medians of "
        f"{chosen.rounds} interleaved rounds.",
        captures(),
        ratios(chosen.models.split(","), chosen.rounds),
        f"`many` with 10 targets against 10 calls, VGG16, one image: {page.mark(many(chosen.rounds), *MANY)} (must {MANY[0]}, aim {MANY[1]}).",
        memory(),
    ]
    text = "\n\n".join(parts)
    print(text)
    if chosen.write:
        page.write("speed", text)


if __name__ == "__main__":
    main()
