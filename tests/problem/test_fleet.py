"""`Fleet`: every error names entry and field; links between machines, by hand."""

import math

import pytest

import hypsolve as hs
from hypsolve.problem.fleet import Pin

LAN = hs.Link(bytes_per_s=1e9, latency_s=1e-4)
WAN = hs.Link(bytes_per_s=1e8, latency_s=0.01, return_latency_s=0.03)
SLOW = hs.Link(bytes_per_s=2e7, latency_s=0.002)


def node(name="a", **more):
    return hs.Node(name=name, gpu=hs.gpu("h100"), **more)


def machine(name="a", site="room", **more):
    return hs.Machine(node=node(name), site=site, **more)


def fleet(**changes):
    """Two rooms; `a` and `b` in the first one, `c` in the second one."""
    given = {
        "name": "lab",
        "sites": (hs.Site(name="room", link=LAN), hs.Site(name="rack", link=LAN)),
        "machines": (machine("a"), machine("b"), machine("c", "rack")),
        "links": {("room", "rack"): WAN},
    }
    return hs.Fleet(**{**given, **changes})


PAIR = hs.Node(name="p", gpu=hs.gpu("h100"), gpus=2, tensor_parallel=2,
               interconnect=hs.interconnect("nvlink4", "h100"))  # fmt: skip


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: hs.Site(name="", link=LAN), ValueError, "site: name must not be empty"),
        (lambda: hs.Site(name="a\nb", link=LAN), ValueError, "site: name must be printable"),
        (lambda: hs.Site(name="room", link=1e9), TypeError,
         "site 'room': link must be a Link, got 1000000000.0"),
        (lambda: hs.Machine(node="h100", site="room"), TypeError,
         "machine: node must be a Node, got 'h100'"),
        (lambda: machine("a", 3), TypeError, "machine 'a': site: name must be a string, got 3"),
        (lambda: machine("a", price_per_hour=-1), ValueError,
         "machine 'a': price_per_hour must be finite and not negative, got -1"),
        (lambda: machine("a", price_per_hour=math.nan), ValueError,
         "machine 'a': price_per_hour must be .*got nan"),
        (lambda: machine("a", price_per_hour="2"), TypeError,
         "machine 'a': price_per_hour must be a number, got '2'"),
        (lambda: machine("a", uplink=1e8), TypeError,
         "machine 'a': uplink must be a Link, got 100000000.0"),
        (lambda: machine("a", offer=None), TypeError,
         "machine 'a': offer must be a str, got None"),
        (lambda: hs.Machine(node=PAIR, site="room"), ValueError,
         "machine 'p': tensor_parallel must not be set, for the placement chooses it, got 2"),
        (lambda: Pin(start=-1, stop=2, sites=("room",)), ValueError,
         "pin: start must be at least 0, got -1"),
        (lambda: Pin(start=2, stop=2, sites=("room",)), ValueError,
         "pin: stop must be at least 3, got 2"),
        (lambda: Pin(start=0, stop=2, sites=()), ValueError, "pin: sites must hold at least"),
        (lambda: Pin(start=0, stop=2, sites="room"), TypeError, "pin: sites must be a tuple"),
        (lambda: Pin(start=0, stop=2, sites=("room", "room")), ValueError,
         "pin: sites must be distinct, got 'room' twice"),
    ],
)  # fmt: skip
def test_errors_of_entries_name_entry_and_field(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


TWICE = (machine("a"), machine("a"))
ROOM = hs.Site(name="room", link=LAN)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"name": ""}, ValueError, "fleet: name must not be empty"),
        ({"sites": ()}, ValueError, "fleet 'lab': sites must hold at least one site"),
        ({"sites": [LAN]}, TypeError, "fleet 'lab': sites must be a tuple of Site"),
        ({"sites": (ROOM, ROOM)}, ValueError,
         "fleet 'lab': names of sites must be distinct, got 'room' twice"),
        ({"machines": ()}, ValueError, "fleet 'lab': machines must hold at least one machine"),
        ({"machines": machine()}, TypeError, "fleet 'lab': machines must be a tuple of Mach"),
        ({"machines": TWICE}, ValueError,
         "fleet 'lab': names of machines must be distinct, got 'a' twice"),
        ({"machines": (machine("a", "rom"),)}, ValueError,
         "unknown site of machine 'a' 'rom'; did you mean room"),
        ({"links": [WAN]}, TypeError, "fleet 'lab': links must be a mapping, got"),
        ({"links": {("room",): WAN}}, ValueError, "fleet 'lab': links must join two sites"),
        ({"links": {"room": WAN}}, ValueError, "links must join two sites, got 'room'"),
        ({"links": {("room", "room"): WAN}}, ValueError, "links must join two sites"),
        ({"links": {("room", "rak"): WAN}}, ValueError,
         "unknown site in links of fleet 'lab' 'rak'; did you mean rack"),
        ({"links": {("room", "rack"): 1e8}}, TypeError,
         r"fleet 'lab': links\[\('room', 'rack'\)\] must be a Link, got 100000000.0"),
        ({"default_link": 5}, TypeError, "fleet 'lab': default_link must be a Link, got 5"),
        ({"entry": "room"}, TypeError, "fleet 'lab': entry must be a mapping, got 'room'"),
        ({"entry": {"hall": 1.0}}, ValueError, "unknown site in entry of fleet 'lab' 'hall'"),
        ({"entry": {"room": -1, "rack": 2}}, ValueError,
         r"fleet 'lab': entry\['room'\] must be finite and not negative, got -1"),
        ({"entry": {"room": 0.5, "rack": 0.4}}, ValueError,
         "fleet 'lab': shares in entry must add up to 1, got 0.9"),
        ({"pins": Pin(start=0, stop=1, sites=("room",))}, TypeError,
         "fleet 'lab': pins must be a tuple, got"),
        ({"pins": ((0, 1, "room"),)}, TypeError, r"fleet 'lab': pins\[0\] must be a Pin, got"),
        ({"pins": (Pin(start=0, stop=1, sites=("room",)),
                   Pin(start=1, stop=2, sites=("rom",)))}, ValueError,
         r"unknown site in pins\[1\] of fleet 'lab' 'rom'; did you mean room"),
        ({"apart": {"a"}}, TypeError, "fleet 'lab': apart must be a tuple, got {'a'}"),
        ({"apart": ("ab",)}, TypeError,
         r"fleet 'lab': apart\[0\] must be a set of names of machines, got 'ab'"),
        ({"apart": ({"a", "b"}, {"a", "x"})}, ValueError,
         r"unknown machine in apart\[1\] of fleet 'lab' 'x'"),
    ],
)  # fmt: skip
def test_errors_of_a_fleet_name_entry_and_field(changes, kind, message):
    with pytest.raises(kind, match=message):
        fleet(**changes)


def test_a_fleet_keeps_its_own_copies():
    links, pins, apart = {("room", "rack"): WAN}, [], [{"a", "b"}]
    lab = fleet(links=links, pins=pins, apart=apart)
    links.clear()
    apart[0].add("c")
    assert lab.links == {("room", "rack"): WAN} and lab.pins == ()
    assert lab.apart == (frozenset({"a", "b"}),)
    assert lab.entry == {"room": 1.0}


def test_a_machine_that_is_not_there_suggests_another():
    with pytest.raises(ValueError, match="unknown machine 'd'"):
        fleet().machine("d")
    assert fleet().machine("c").site == "rack"


def test_links_between_sites_are_found_in_both_directions():
    """The way back of the reversed pair counts; without one, the same link turned round."""
    lab = fleet()
    assert lab.site_link("room", "room") == LAN
    assert lab.site_link("room", "rack") == WAN
    assert lab.site_link("rack", "room") == hs.Link(
        bytes_per_s=1e8, latency_s=0.03, return_latency_s=0.01
    )
    both = fleet(links={("room", "rack"): WAN, ("rack", "room"): SLOW})
    assert both.site_link("room", "rack") == hs.Link(
        bytes_per_s=1e8, latency_s=0.01, return_latency_s=0.002
    )
    assert both.site_link("rack", "room") == hs.Link(
        bytes_per_s=2e7, latency_s=0.002, return_latency_s=0.01
    )
    assert fleet(links={}).site_link("room", "rack") is None
    assert fleet(links={}, default_link=SLOW).site_link("rack", "room") == SLOW


def test_links_between_machines_add_latencies_and_take_the_slowest_rate():
    lab = fleet(machines=(machine("a", uplink=SLOW), machine("b"), machine("c", "rack")))
    a, b, c = lab.machines
    assert lab.link(b, c) == WAN
    there = lab.link(a, c)
    assert there.bytes_per_s == 2e7
    assert there.latency_s == pytest.approx(0.012)
    assert there.return_latency_s == pytest.approx(0.032)
    assert lab.link(a, b).latency_s == pytest.approx(0.0021)
    assert fleet(links={}).link(b, c) is None


def test_machines_of_a_network_keep_its_links_and_prices():
    tiers = (
        hs.Tier(name="edge", nodes=(node("a"),), link=WAN),
        hs.Tier(name="cloud", nodes=(node("b"), node("c"))),
    )
    lab = hs.Fleet.of_network(hs.Network(name="net", tiers=tiers), {"b": 2.5})
    assert [(m.name, m.site, m.price_per_hour) for m in lab.machines] == [
        ("a", "edge", 0.0), ("b", "cloud", 2.5), ("c", "cloud", 0.0),
    ]  # fmt: skip
    found = lab.site_link("edge", "cloud")
    assert found.bytes_per_s == pytest.approx(1e8)
    assert (found.latency_s, found.return_latency_s) == pytest.approx((0.01, 0.03))
    with pytest.raises(ValueError, match="unknown node in prices 'd'"):
        hs.Fleet.of_network(hs.Network(name="net", tiers=tiers), {"d": 2.5})


def test_kinds_are_what_interchangeable_machines_share():
    assert machine("a").kind == machine("b").kind == machine("c", offer="cheap").kind
    others = [
        machine("a", "rack"), machine("a", price_per_hour=1.0), machine("a", uplink=SLOW),
        hs.Machine(node=hs.Node(name="a", gpu=hs.gpu("l4")), site="room"),
        hs.Machine(node=hs.Node(name="a", gpu=hs.gpu("h100"), memory_bytes=2**34), site="room"),
    ]  # fmt: skip
    assert len({machine("a").kind, *(other.kind for other in others)}) == 6
    assert fleet().n_gpus == 3 and fleet().describe() == "3 machines, 3 GPUs, 2 sites"
