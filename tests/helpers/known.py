"""The small net around each layer of `layers.py` and each function of `functions.py`; which operations it holds."""

import torch
from torch import nn

import lrp
from helpers.functions import FUNCTIONS
from helpers.layers import LAYERS, Layer
from lrp.engine.graph.ops import data_nodes, operation_name

CASES = LAYERS | FUNCTIONS
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PIXEL_CHANNELS = 2


class Net(nn.Module):
    """conv → ReLU → layer → flatten → linear; without the ReLU for a function, which is to see both signs."""

    def __init__(self, case: Layer, relu: bool):
        super().__init__()
        self.case = case
        self.stem = CONVS[case.dimensions](PIXEL_CHANNELS, case.shape[0], 3, padding=1)
        self.between = nn.ReLU() if relu else nn.Identity()
        self.layer = case.make().eval()
        with torch.no_grad():
            size = self.layer(torch.zeros(2, *case.shape)).flatten(1).shape[1]
        self.head = nn.Linear(size, 3)

    def forward(self, x):
        return self.head(self.layer(self.between(self.stem(x))).flatten(1))

    def twin(self, x):
        """The same, with what LRP holds constant detached."""
        layer = self.layer if self.case.twin is None else lambda z: self.case.twin(self.layer, z)
        return self.head(layer(self.between(self.stem(x))).flatten(1))


def randomised(model: nn.Module) -> nn.Module:
    """In float64 and eval mode; norms as after training, with some negative scales."""
    with torch.no_grad():
        for module in model.modules():
            scale = getattr(module, "weight", None)
            if (isinstance(scale, nn.Parameter) and scale.dim() == 1) or "Norm" in type(module).__name__:
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(torch.randn_like(parameter) + 0.1)
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 1.3)
    return model.double().eval()


def subject(name: str) -> tuple[Net, torch.Tensor]:
    """The net of a case, and images [N, 2, *space] for it."""
    torch.manual_seed(sum(map(ord, name)))
    case = CASES[name]
    model = randomised(Net(case, relu=name in LAYERS))
    return model, torch.randn(3, PIXEL_CHANNELS, *case.shape[1:], dtype=torch.float64)


def operations_of(model: Net, x: torch.Tensor) -> set[str]:
    """The operations inside the layer of a net: as torch.export records them, and as rules are assigned to them."""
    prepared = lrp.Explainer(model).prepare(x)
    captured = data_nodes(prepared.captured.graph)
    names = {operation_name(n) for n in captured if n.op == "call_function" and _inside(n.meta["path"])}
    names |= {o.name for o in prepared.graph.operations.values() if _inside(o.path)}
    return names - {"getitem"}


def _inside(path: str) -> bool:
    return path.partition(".")[0] == "layer"


def tried() -> dict[str, dict[str, list[str]]]:
    """operation -> dimensions -> the cases that hold it, both sorted: the content of known_operations.json."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, case in CASES.items():
        for operation in operations_of(*subject(name)):
            found.setdefault(operation, {}).setdefault(str(case.dimensions), []).append(name)
    return {o: dict(sorted(found[o].items())) for o in sorted(found)}
