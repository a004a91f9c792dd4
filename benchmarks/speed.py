"""Time and memory of one explanation, as multiples of one plain input gradient of the same model.

    python benchmarks/speed.py [--rounds 7] [--models vgg16,resnet50]

Everything is interleaved in one process and compared within a round, so that a machine that speeds up or
slows down moves all columns alike; medians over rounds. Random weights: they change no operation's cost.
Memory is measured in processes of their own, as growth of the peak resident set over the loaded model.
"""

from __future__ import annotations

import argparse
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

BATCH = 4


def model_and_images(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # the gradient is that of the input alone
    return model, torch.randn(BATCH, 3, 224, 224)


def forward(model: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(x)

    return run


def gradient(model: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        image = x.clone().requires_grad_()
        model(image)[:, 0].sum().backward()
        return image.grad

    return run


def ours(model: torch.nn.Module, x: torch.Tensor, preset: str, health: bool = False) -> Callable[[], object]:
    import lrp

    explainer = lrp.Explainer(model, lrp.preset(preset, low=-2.2, high=2.7))

    def run() -> object:
        explanation = explainer(x, 0)
        return explanation.health if health else explanation

    return run


def zennit(model: torch.nn.Module, x: torch.Tensor, composite: str) -> Callable[[], object]:
    from zennit import composites
    from zennit.attribution import Gradient
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    canonizer = VGGCanonizer() if type(model).__name__ == "VGG" else ResNetCanonizer()
    settings = {"low": -2.2, "high": 2.7} if composite == "EpsilonGammaBox" else {}
    chosen = getattr(composites, composite)(canonizers=[canonizer], **settings)
    start = torch.zeros(len(x), 1000)
    start[:, 0] = 1

    def run() -> object:
        with Gradient(model, chosen) as attributor:
            return attributor(x.clone().requires_grad_(), start)

    return run


def captum(model: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False  # captum's hooks cannot follow in-place operations
        if isinstance(module, torch.nn.AdaptiveAvgPool2d | torch.nn.BatchNorm2d):
            module.rule = EpsilonRule()  # type: ignore[assignment]
    attribution = LRP(model)
    return lambda: attribution.attribute(x.clone().requires_grad_(), target=0)


def columns(name: str) -> dict[str, Callable[[], object]]:
    model, x = model_and_images(name)
    for_captum, _ = model_and_images(name)
    return {
        "gradient": gradient(model, x),
        "forward": forward(model, x),
        "lrp epsilon": ours(model, x, "epsilon"),
        "lrp epsilon_plus_flat": ours(model, x, "epsilon_plus_flat"),
        "lrp epsilon_plus_flat with health": ours(model, x, "epsilon_plus_flat", health=True),
        "lrp epsilon_gamma_box": ours(model, x, "epsilon_gamma_box"),
        "lrp epsilon_alpha2_beta1": ours(model, x, "epsilon_alpha2_beta1"),
        "zennit EpsilonPlusFlat": zennit(model, x, "EpsilonPlusFlat"),
        "zennit EpsilonGammaBox": zennit(model, x, "EpsilonGammaBox"),
        "captum LRP": captum(for_captum, x),
    }


def times(name: str, rounds: int) -> None:
    runs = columns(name)
    for label, run in list(runs.items()):
        try:
            run()  # captures, allocates, warms up
        except Exception as error:
            print(f"  {label:<36} fails: {type(error).__name__}: {str(error).splitlines()[0][:60]}")
            del runs[label]
    taken: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            begin = time.perf_counter()
            run()
            taken[label].append(time.perf_counter() - begin)
    for label, seconds in taken.items():
        ratio = statistics.median(s / g for s, g in zip(seconds, taken["gradient"], strict=True))
        print(f"  {label:<36} {ratio:5.2f} x   {statistics.median(seconds):6.2f} s", flush=True)


def peak(name: str, what: str) -> float:
    """Peak memory in MiB of one run, over what the process held with the model loaded."""
    model, x = model_and_images(name)
    run = gradient(model, x) if what == "gradient" else ours(model, x, what)
    if what != "gradient":  # capture and the positive parts of the weights come first, once
        import lrp

        small = lrp.Explainer(model, what)
        small(x[:1], 0)
        run = lambda: small(x, 0)  # noqa: E731
    else:
        gradient(model, x[:1])()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    held = status("VmRSS")
    run()
    return (status("VmHWM") - held) / 1024


def status(key: str) -> int:
    """A line of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def memory(name: str) -> None:
    found = {}
    for what in ("gradient", "epsilon_plus_flat"):
        command = [sys.executable, __file__, "--peak", what, "--models", name]
        found[what] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    ratio = found["epsilon_plus_flat"] / found["gradient"]
    print(f"  peak memory: gradient {found['gradient']:.0f} MiB, epsilon_plus_flat {ratio:.2f} x")


def capture_time(name: str) -> None:
    import lrp

    model, x = model_and_images(name)
    begin = time.perf_counter()
    lrp.Explainer(model, "epsilon_plus_flat").prepare(x)
    print(f"capture of {name}, rules and program: {time.perf_counter() - begin:.1f} s")


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="vgg16,resnet50")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak(chosen.models, chosen.peak))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, float32, random weights"
    )
    capture_time("vgg19")
    for name in chosen.models.split(","):
        print(name)
        times(name, chosen.rounds)
        memory(name)


if __name__ == "__main__":
    main()
