"""The bound on what users in a closed loop are served."""

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.load import Load
from hypsolve.planning.saturation import rate_of_users
from hypsolve.planning.throughput import RateSearch
from hypsolve.planning.user_bound import bound_on_users
from tests.helpers import token_toys as toys
from tests.planning.test_load_search import drawn


@pytest.mark.parametrize("think_time_s", [0.0, 3.0])
def test_the_bound_is_that_of_rounds_where_nothing_waits(think_time_s):
    """A prompt and eight more tokens take nine passes of a second: closed form."""
    problem = hs.Deployment(
        model=toys.model(1), network=toys.network([[toys.gpu(t0_s=1.0)]]),
        requests=hs.Requests([0.0], [1], [9]), runtime=hs.Runtime(name="toy", max_num_seqs=4),
    )  # fmt: skip
    load = Load(users=3, think_time_s=think_time_s)
    bound = bound_on_users(problem, {}, load)
    assert bound == pytest.approx(3 / (9 + think_time_s), rel=1e-6)
    assert bound_on_users(problem, {}, Load()) == np.inf


@pytest.mark.parametrize("seed", range(6))
def test_no_split_serves_users_more(seed):
    """The oracle simulates every split with few users, whose rounds limit the rate."""
    rng, deployment, _, splits, _ = drawn(seed)
    load = Load(users=int(rng.integers(1, 4)), think_time_s=float(rng.choice([0.0, 0.2])))
    bound = bound_on_users(deployment, {}, load)
    rates = [rate_of_users(deployment, split, load).requests_per_s for split in splits]
    assert max(rates) <= bound * (1 + 1e-9)
    search = RateSearch(deployment, {}, load, objective="throughput", prices_per_hour={})
    plain = hs.throughput_bound(deployment, users=load.users, think_time_s=load.think_time_s)
    assert max(rates) <= search.bound() * (1 + 1e-9)
    assert search.bound() == min(bound, plain)
