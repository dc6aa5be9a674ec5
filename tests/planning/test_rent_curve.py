"""The least price against the rate, and break-even prices, by hand and by enumeration."""

import json
import math

import jsonschema
import pytest

import hypsolve as hs
from hypsolve.planning.json_schema import schema
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.rent_curve import RentPoint, _monotone, _Prices, curve_of

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
    curve = curve_of(query(asked))
    assert curve.is_carried
    for point in curve.points:
        assert point.price_per_hour == cheapest(alone, point.requests_per_s, PRICES)
        assert point.is_proved


def test_break_even_prices_are_those_of_all_subsets(alone):
    """A little above the price the kind is not used, a little below it is."""
    asked = 0.9 * (alone["l40s"] + alone["a100-80gb"])
    curve = curve_of(query(asked), shares=())
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
    curve = curve_of(query(0.99 * sum(alone.values())), shares=(2.0,))
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


@pytest.fixture(scope="module")
def curve(alone):
    rate = 0.9 * (alone["l40s"] + alone["a100-80gb"])
    asked = {"rate_per_s": rate, "output_tokens": 64, "max_stages": 1, "time_limit_s": 30}
    return hs.rent_curve("llama-3-8b", lab(), shares=(0.5, 1.0, 50.0), **asked)


def test_the_public_function_is_the_command(alone, curve):
    rate = 0.9 * (alone["l40s"] + alone["a100-80gb"])
    assert curve.to_dict() == curve_of(query(rate), shares=(0.5, 1.0, 50.0)).to_dict()


def test_a_saved_curve_has_its_schema(curve, tmp_path):
    """Every field is required, at both depths, and no other one is taken."""
    curve.save(tmp_path / "curve.json")
    table = json.loads((tmp_path / "curve.json").read_text())
    assert table == curve.to_dict() and table["points"][-1]["price_per_hour"] is None
    check = jsonschema.Draft202012Validator(schema("rent-curve"))
    check.validate(table)
    for name in table:
        assert not check.is_valid({key: of for key, of in table.items() if key != name}), name
    for rows in ("points", "offers"):
        for name in table[rows][0]:
            row = {key: of for key, of in table[rows][0].items() if key != name}
            assert not check.is_valid({**table, rows: [row]}), (rows, name)
    with pytest.raises(ValueError, match=r"curve.txt: the name of a curve must end in .json"):
        curve.save(tmp_path / "curve.txt")


def test_the_figure_has_the_points_that_are_carried(curve):
    ax = curve.plot()
    x, y = ax.get_lines()[0].get_data()
    carried = [point for point in curve.points if point.price_per_hour < math.inf]
    assert list(x) == [point.requests_per_s for point in carried]
    assert list(y) == [point.price_per_hour for point in carried]
    words = [text.get_text() for text in ax.texts]
    assert "1 x l40s, 1 x a100-80gb" in words or "1 x a100-80gb, 1 x l40s" in words
    assert " not carried" in words and "lama-3-8b" in ax.get_title(loc="left")
    none = curve_of(query(1e9), shares=())
    with pytest.raises(ValueError, match="no curve to draw"):
        none.plot()


@pytest.mark.parametrize(("at", "n_points", "n_offers"), [(2, 1, 0), (4, 3, 0), (5, 3, 1)])
def test_an_interrupt_leaves_what_was_found(alone, monkeypatch, at, n_points, n_offers):
    real, n_calls = _Prices.solve, 0

    def interrupted(*given):
        nonlocal n_calls
        n_calls += 1
        if n_calls == at:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(_Prices, "solve", interrupted)
    found = curve_of(query(0.5 * alone["l40s"]), shares=(0.5, 1.5))
    assert found.interrupted and str(found).startswith("stopped: ") and found.is_carried
    assert len(found.points) == n_points and len(found.offers) == n_offers
    jsonschema.validate(found.to_dict(), schema("rent-curve"))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "cost needs rate_per_s"),
        ({"rate_per_s": 1, "shares": (0.0,)}, "rent_curve: shares must be"),
        ({"rate_per_s": 1, "shares": ("x",)}, "rent_curve: shares must be"),
        ({"rate_per_s": 1, "share": 1}, "share"),
    ],
)
def test_bad_arguments(asked, words):
    with pytest.raises((ValueError, TypeError), match=words):
        hs.rent_curve("llama-3-8b", lab(), **asked)
