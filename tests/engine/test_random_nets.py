"""Random nets over the vocabulary, in 1, 2 and 3 dimensions; `make fuzz` runs many more of them."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import lrp
from helpers.properties import check_net
from helpers.random_nets import random_net

few = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("piecewise_linear", [True, False], ids=["piecewise linear", "any"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@few
@given(seed=st.integers(0, 10**6), preset=st.sampled_from(lrp.composites()))
def test_what_holds_for_any_net(dims, piecewise_linear, seed, preset):
    net, x = random_net(seed, dims, piecewise_linear)
    check_net(net, x, preset, piecewise_linear)
