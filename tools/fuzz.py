"""Explain many random nets, and print the seeds of those for which something that must hold does not.

python tools/fuzz.py 10000 --processes 2
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def one(seed: int) -> tuple[int, str]:
    """(seed, what went wrong or "")."""
    import torch

    import lrp
    from helpers.properties import check_net
    from helpers.random_nets import random_net

    torch.set_num_threads(1)
    dims, piecewise_linear = 1 + seed % 3, seed % 2 == 0
    preset = lrp.composites()[seed // 6 % len(lrp.composites())]
    try:
        net, x = random_net(seed, dims, piecewise_linear)
        check_net(net, x, preset, piecewise_linear)
    except Exception as error:
        return seed, f"{preset}, {dims} dimensions: {type(error).__name__}: {str(error).splitlines()[0]}"
    return seed, ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, nargs="?", default=10_000, help="how many nets")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    began, wrong = time.monotonic(), 0
    seeds = range(options.first, options.first + options.count)
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=500) as pool:
        for done, (seed, fault) in enumerate(pool.imap_unordered(one, seeds, chunksize=20), 1):
            if fault:
                wrong += 1
                print(f"seed {seed}: {fault}", flush=True)
            if done % 500 == 0:
                print(f"{done} nets, {wrong} faults, {time.monotonic() - began:.0f} s", flush=True)
    print(f"seeds {seeds.start} to {seeds.stop - 1}: {wrong} faults in {options.count} nets")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
