"""The least price against the rate, and break-even prices, by hand and by enumeration."""

import math

import pytest

import hypsolve as hs
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.rent_curve import RentPoint, _monotone, rent_curve

PRICES = {"l40s": 1.0, "a100-80gb": 1.5, "h100": 9.0}


def lab(**prices):
    """One machine of each kind."""
    return hs.Fleet(
        name="lab",
        sites=(hs.Site(name="room", link=hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)),),
        machines=tuple(
            hs.Machine(
                node=hs.Node(name=name, gpu=hs.gpu(name)), site="room", price_per_hour=price
            )
            for name, price in {**PRICES, **prices}.items()
        ),
    )


def query(rate, fleet=None):
    return PlaceQuery.of(
        "llama-3-8b", fleet or lab(), objective="cost", rate_per_s=rate, output_tokens=64,
        max_stages=1, time_limit_s=30,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone():
    """Rate of each machine that serves by itself."""
    problem = query(1.0).problem(objective="throughput")
    result = hs.solve(problem, "replica_per_machine")
    names = [pipeline.stages[0].machine for pipeline in result.placement.pipelines]
    rates = [each.fluid_requests_per_s for each in result.served.pipelines]
    return dict(zip(names, rates, strict=True))


def cheapest(alone, rate, prices):
    """The least price of a subset of machines that carries a rate, without any solver."""
    names, best = list(prices), math.inf
    for mask in range(1, 2 ** len(names)):
        chosen = [name for at, name in enumerate(names) if mask >> at & 1]
        if sum(alone[name] for name in chosen) >= rate:
            best = min(best, sum(prices[name] for name in chosen))
    return best


def test_the_curve_is_that_of_all_subsets(alone):
    asked = 0.9 * (alone["l40s"] + alone["a100-80gb"])
    curve = rent_curve(query(asked))
    assert curve.is_carried
    for point in curve.points:
        assert point.price_per_hour == cheapest(alone, point.requests_per_s, PRICES)
        assert point.is_proved


def test_break_even_prices_are_those_of_all_subsets(alone):
    """A little above the price the kind is not used, a little below it is."""
    asked = 0.9 * (alone["l40s"] + alone["a100-80gb"])
    curve = rent_curve(query(asked), shares=())
    assert {each.name for each in curve.offers} == set(PRICES)
    for each in curve.offers:
        assert each.is_proved and 0 < each.break_even_per_hour < math.inf
        others = {k: v for k, v in PRICES.items() if k != each.name}
        without = cheapest(alone, asked, others)
        limit = each.break_even_per_hour
        below = cheapest(alone, asked, {**others, each.name: limit * 0.999})
        above = cheapest(alone, asked, {**others, each.name: limit * 1.001})
        assert below < without and above == without


def test_the_last_machine_is_needed(alone):
    curve = rent_curve(query(0.99 * sum(alone.values())), shares=(2.0,))
    assert [each.break_even_per_hour for each in curve.offers] == [math.inf] * 3
    assert curve.points[-1].price_per_hour == math.inf and curve.points[-1].is_proved
    assert "none of this kind does not do" in str(curve)
    assert curve.to_dict()["offers"][0]["is_needed"]


def test_a_curve_never_falls():
    """A point takes the machines of a larger rate, and the bound of a smaller one."""
    given = [(1.0, 3.0, 2.0), (2.0, 2.5, 1.0), (3.0, math.inf, 0.0)]
    points = [
        RentPoint(requests_per_s=r, price_per_hour=p, bound_per_hour=b, machines={})
        for r, p, b in given
    ]
    found = [(x.price_per_hour, x.bound_per_hour) for x in _monotone(points)]
    assert found == [(2.5, 2.0), (2.5, 2.0), (math.inf, 2.0)]
