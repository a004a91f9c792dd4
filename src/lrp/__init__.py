"""See which pixels made an image classifier decide: layer-wise relevance propagation (LRP) for PyTorch."""

from lrp.composite import (
    Composite,
    composites,
    depthwise,
    everything,
    family,
    first,
    module,
    op,
    path,
    preset,
)
from lrp.errors import (
    CaptureError,
    CompositeError,
    ImageError,
    InputError,
    LedgerError,
    LrpError,
    ModelError,
    RuleError,
    TargetError,
    UnsupportedError,
)
from lrp.explain import Explainer, Explanation, Explanations, explain
from lrp.ledger import Health, Ledger
from lrp.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Magnitude,
    Pass,
    Proportional,
    Rule,
    WinnerTakesAll,
    WPlus,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
)
from lrp.targets import Contrast

__version__ = "0.1.0"
