"""Each rule of lrp with the same rule of the oracle."""

import lrp
from helpers import oracle

EPSILONS = (0.0, 1e-6, 0.25)
BIASES = ("absorb", "ignore")

# name -> (rule of lrp, rule of the oracle)
RULES = {}
for bias in BIASES:
    RULES[f"Zero({bias})"] = lrp.Zero(bias=bias), oracle.zero(bias)
    for eps in EPSILONS:
        RULES[f"Epsilon({eps}, {bias})"] = lrp.Epsilon(eps, bias=bias), oracle.epsilon(eps, bias)
        RULES[f"Gamma(0.25, {eps}, {bias})"] = (
            lrp.Gamma(0.25, epsilon=eps, bias=bias),
            oracle.gamma(0.25, eps, bias),
        )
        RULES[f"ZPlus({eps}, {bias})"] = lrp.ZPlus(epsilon=eps, bias=bias), oracle.z_plus(eps, bias)
    RULES[f"Gamma(7, {bias})"] = lrp.Gamma(7.0, epsilon=0.25, bias=bias), oracle.gamma(7.0, 0.25, bias)
for bias in (*BIASES, "full"):
    for eps in EPSILONS:
        RULES[f"AlphaBeta(2, 1, {eps}, {bias})"] = (
            lrp.AlphaBeta(2.0, 1.0, epsilon=eps, bias=bias),
            oracle.alpha_beta(2.0, 1.0, eps, bias),
        )
    RULES[f"AlphaBeta(1, 0, {bias})"] = (
        lrp.AlphaBeta(1.0, 0.0, epsilon=0.25, bias=bias),
        oracle.alpha_beta(1, 0, 0.25, bias),
    )
    RULES[f"AlphaBeta(1.7, 0.7, {bias})"] = (
        lrp.AlphaBeta(1.7, 0.7, epsilon=0.25, bias=bias),
        oracle.alpha_beta(1.7, 0.7, 0.25, bias),
    )
for eps in EPSILONS:
    RULES[f"ZBox({eps})"] = lrp.ZBox(-2.5, 3.0, epsilon=eps), oracle.z_box(-2.5, 3.0, eps)
    RULES[f"WSquare({eps})"] = lrp.WSquare(epsilon=eps), oracle.w_square(eps)
    RULES[f"Flat({eps})"] = lrp.Flat(epsilon=eps), oracle.flat(eps)

ELEMENTWISE_RULES = RULES | {
    "Pass": (lrp.Pass(), oracle.flat(0.0))
}  # each output has one input, which gets all of R
SUM_RULES = {
    name: rules
    for name, rules in RULES.items()
    if name.startswith(("Zero", "Epsilon")) and "ignore" not in name
}
for eps in EPSILONS:
    SUM_RULES[f"Magnitude({eps})"] = lrp.Magnitude(epsilon=eps), oracle.magnitude(eps)
ALL_RULES = ELEMENTWISE_RULES | SUM_RULES
CONSTANT_RULES = tuple(name for name in SUM_RULES if not name.startswith("Magnitude"))

# each rule, each ε, each treatment of the bias at least once; not all combinations
SOME = (
    "Zero(absorb)", "Epsilon(0.25, ignore)", "Gamma(0.25, 0.25, absorb)", "Gamma(7, ignore)", "ZPlus(0.25, absorb)",
    "AlphaBeta(2, 1, 0.25, absorb)", "AlphaBeta(2, 1, 1e-06, full)", "AlphaBeta(1.7, 0.7, ignore)", "ZBox(0.25)",
    "WSquare(1e-06)", "Flat(0.25)",
)  # fmt: skip
ELEMENTWISE = (*SOME, "Pass")
