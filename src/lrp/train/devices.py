"""Training one net on several devices: Lightning Fabric starts the processes; a helper shares values between them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lrp.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Value = TypeVar("Value")
PATIENCE = timedelta(days=7)
"""How long other processes wait for the first one, which may be computing features or drawing heatmaps."""


def launch_devices(device: str = "auto", devices: int = 1, nodes: int = 1) -> Fabric:
    """The devices to train on; with several devices, this starts their processes.

    Raises:
        TrainingError: Lightning Fabric is not installed, or there are fewer devices.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
        from lightning_fabric.utilities.exceptions import MisconfigurationException
    except ModuleNotFoundError as error:
        raise TrainingError("this needs Lightning Fabric: pip install 'lrp[train]'.") from error
    kind = device.partition(":")[0]
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if kind == "auto" else kind
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # hides its banners
    chosen: Any = [int(device.partition(":")[2])] if ":" in device and devices == 1 else devices
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=chosen,
            num_nodes=nodes,
            strategy=DDPStrategy(timeout=PATIENCE) if devices * nodes > 1 else "auto",
            precision="bf16-mixed" if kind == "cuda" and torch.cuda.is_bf16_supported() else "32-true",
        )
        fabric.launch()
    except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
        words = " ".join(str(error).split())
        raise TrainingError(f"--devices {devices} of {kind}: {words}") from error
    return fabric


def shared_by_devices(fabric: Fabric, make: Callable[[], Value]) -> Value | None:
    """Call `make` in the first process and return its value in all. If it raises, the other processes get None."""
    made = None
    try:
        if fabric.is_global_zero:
            made = make()
    finally:
        made = fabric.broadcast(made) if fabric.world_size > 1 else made
    return made
