"""Layouts of layers: what they refuse, and what they say of themselves."""

import pytest

from hypsolve.problem.layer_layout import HostedRange, LayerLayout

A, B = HostedRange("a", 0, 3), HostedRange("b", 2, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("", 0, 1), "hosted range: machine must not be empty"),
        (("a", -1, 1), "hosted range of 'a': start must be at least 0, got -1"),
        (("a", 2, 2), "hosted range of 'a': stop must be at least 3, got 2"),
        (("a", 0, 1.5), "hosted range of 'a': stop must be a whole number, got 1.5"),
    ],
)
def test_a_range_names_the_field_that_is_wrong(fields, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}$"):
        HostedRange(*fields)


@pytest.mark.parametrize(
    ("ranges", "flows", "message"),
    [
        ((), (), "ranges must hold at least one"),
        ((A, A), (), "ranges must name a machine once, got 'a' twice"),
        ((A, B), (("a", "c", 1.0),), "unknown machine in flows of layer layout 'c'"),
        ((A, B), (("a", "a", 1.0),), "flows must join two places, got 'a' to 'a'"),
        ((A, B), (("a", "b", 1.0), ("a", "b", 2.0)), "flows must name a pair once"),
        ((A, B), (("a", "b", -1.0),), "flow from 'a' to 'b' must be finite and not negative"),
        ((A, B), (("a", "b"),), "flows must hold"),
    ],
)
def test_a_layout_names_the_rule_that_it_breaks(ranges, flows, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LayerLayout(ranges, flows)


def test_a_layout_adds_up_what_leaves_the_coordinator():
    layout = LayerLayout(
        (A, B), ((None, "a", 2.0), (None, "b", 1.0), ("a", "b", 2.0), ("b", None, 3.0))
    )
    assert layout.tokens_per_s == 3.0
    assert layout.range_of("b").n_layers == 3
    assert layout.to_dict()["ranges"] == [["a", 0, 3], ["b", 2, 5]]
