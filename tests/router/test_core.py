"""The choice of `Router`, its outstanding work and its health, against plain versions."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypsolve import Dispatcher
from hypsolve.router.core import MAX_TOKENS, Ending, Refusal, Router, Ticket, Why
from hypsolve.router.estimates import Measured
from hypsolve.router.health import Condition
from hypsolve.router.params import RouterParams
from hypsolve.router.pipeline import RoutedPipeline


def pipeline(name, token_s=2.0**-10, **options):
    return RoutedPipeline(name=name, prompt_token_s=token_s, output_token_s=token_s, **options)


@given(
    speeds=st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=5),
    script=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400), st.booleans())),
)
def test_chooses_as_the_dispatcher_of_the_paper(speeds, script):
    """Equal the paper's rule at concurrency 1, if requests take as long as expected."""
    token_s = [speed * 2.0**-10 for speed in speeds]  # sums are exact in both
    router = Router([pipeline(str(p), each) for p, each in enumerate(token_s)])
    plain = Dispatcher(range(len(speeds)))
    jobs = []
    for n_prompt, n_output, ends in script:
        if ends and jobs:
            ticket, expected_s = jobs.pop(0)
            router.end(ticket, Ending.COMPLETED, 0.0)
            plain.complete(ticket.pipeline, expected_s, expected_s)
        expected = {p: (n_prompt + n_output) * each for p, each in enumerate(token_s)}
        ticket = router.choose(n_prompt, n_output, 0.0)
        assert ticket.pipeline == plain.dispatch(expected)
        jobs.append((ticket, expected[ticket.pipeline]))


@given(
    concurrency=st.lists(st.sampled_from([1, 2, 5, 16]), min_size=2, max_size=4),
    lengths=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1),
)
def test_chooses_the_least_expected_completion_in_fractions(concurrency, lengths):
    speeds = [Fraction(p + 1, 1024) for p in range(len(concurrency))]
    router = Router(
        [
            pipeline(str(p), float(speed), concurrency=c)
            for p, (speed, c) in enumerate(zip(speeds, concurrency, strict=True))
        ]
    )
    outstanding = [Fraction(0)] * len(speeds)
    for n_prompt, n_output in lengths:
        own = [(n_prompt + n_output) * speed for speed in speeds]
        completion = [w / c + s for w, c, s in zip(outstanding, concurrency, own, strict=True)]
        chosen = router.choose(n_prompt, n_output, 0.0).pipeline
        assert completion[chosen] <= min(completion) * (1 + Fraction(1, 10**12))
        outstanding[chosen] += own[chosen]


# --- scripts of faults ------------------------------------------------------------------------

ENDINGS = st.sampled_from(
    [
        (Ending.COMPLETED, {}),
        (
            Ending.COMPLETED,
            {"measured": Measured(prompt_tokens=9, output_tokens=7, busy_s=3.0)},
        ),
        (Ending.COMPLETED, {"measured": Measured(output_tokens=5, output_s=1e-9)}),
        (Ending.COMPLETED, {"measured": Measured(prompt_tokens=1, prompt_s=1e12)}),
        (Ending.REFUSED, {}),
        (Ending.CANCELLED, {}),
        (Ending.FAILED, {}),
        (Ending.FAILED, {"is_down": True}),
        (Ending.FAILED, {"retry_after_s": 7.0}),
    ]
)
EVENTS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 2)),
    st.tuples(st.just("end"), st.integers(0, 50), ENDINGS),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 5.0, 100.0])),
    st.tuples(st.just("check"), st.integers(0, 2), st.booleans()),
)


@settings(max_examples=1000)
@given(script=st.lists(EVENTS, max_size=60), limits=st.sampled_from([(None, 2, 1), (3, 3, 3)]))
def test_no_script_of_faults_leaks_or_loses_work(script, limits):
    """Whatever happens, work equals that of the open requests, and is 0 at the end."""
    router = Router([pipeline(str(p), max_in_flight=n) for p, n in enumerate(limits)])
    now_s, jobs = 0.0, []
    for event, *given_ in script:
        if event == "wait":
            now_s += given_[0]
        elif event == "check":
            before = router.condition(given_[0], now_s)
            changes = router.check(given_[0], given_[1], now_s)
            after = router.condition(given_[0], now_s)
            if given_[1]:
                assert changes == (before is not after)
                assert after is Condition.UP or before is after is Condition.COOLING
            else:
                assert after is not Condition.UP
        elif event == "end" and jobs:
            ticket = jobs.pop(given_[0] % len(jobs))
            ending, options = given_[1]
            router.end(ticket, ending, now_s, **options)
            with pytest.raises(ValueError, match="a request may end only once"):
                router.end(ticket, Ending.CANCELLED, now_s)
            if options.get("is_down") and not ticket.is_probe:
                assert router.condition(ticket.pipeline, now_s) is not Condition.UP
        elif event == "send":
            n_prompt, n_output, avoid = given_
            up = [router.condition(p, now_s) for p in range(3)]
            found = router.choose(n_prompt, n_output, now_s, avoid=(avoid,))
            if isinstance(found, Ticket):
                assert found.pipeline != avoid
                assert up[found.pipeline] is not Condition.COOLING
                assert found.is_probe == (up[found.pipeline] is Condition.PROBE)
                jobs.append(found)
            else:
                # a request is refused only if no other pipeline is up and has room
                for p in {0, 1, 2} - {avoid}:
                    full = router.n_in_flight(p) == limits[p]
                    assert full or up[p] is not Condition.UP
        for p, limit in enumerate(limits):
            mine = [ticket for ticket in jobs if ticket.pipeline == p]
            assert router.n_in_flight(p) == len(mine) <= (limit or math.inf)
            assert router.outstanding_tokens(p) == (
                sum(ticket.prompt_tokens for ticket in mine),
                sum(ticket.output_tokens for ticket in mine),
            )
            assert 0 < router.estimate(p).expected_s(1, 1) < math.inf
    for ticket in jobs:
        router.end(ticket, Ending.CANCELLED, now_s)
    for p in range(3):
        assert router.outstanding_tokens(p) == (0, 0)
        assert router.outstanding_s(p) == router.n_in_flight(p) == 0
    # time and a success bring every pipeline back
    for _ in range(3):
        now_s += 1e6
        found = router.choose(1, 1, now_s)
        while isinstance(found, Ticket):
            router.end(found, Ending.COMPLETED, now_s)
            found = router.choose(1, 1, now_s, among=[p for p in range(3) if
                router.condition(p, now_s) is not Condition.UP])  # fmt: skip
    assert [router.condition(p, now_s) for p in range(3)] == [Condition.UP] * 3


# --- health -----------------------------------------------------------------------------------


def test_a_pipeline_that_fails_cools_down_is_probed_once_and_comes_back():
    router = Router([pipeline("a")], RouterParams(max_failures=2, max_cooldown_s=3.0))
    for at in (0.0, 1.0):
        assert router.condition(0, at) is Condition.UP
        router.end(router.choose(1, 1, at), Ending.FAILED, at)
    assert router.choose(1, 1, 1.5) == Refusal(Why.DOWN, 2.0)
    at = 2.0
    for cooldown_s in (2.0, 3.0, 3.0):  # doubled up to the maximum
        probe = router.choose(1, 1, at)
        assert probe.is_probe
        assert router.choose(1, 1, at) == Refusal(Why.DOWN, math.inf)
        router.end(probe, Ending.FAILED, at)
        assert router.choose(1, 1, at) == Refusal(Why.DOWN, at + cooldown_s)
        at += cooldown_s
    router.end(router.choose(1, 1, at), Ending.CANCELLED, at)  # says nothing
    router.end(router.choose(1, 1, at), Ending.COMPLETED, at)
    assert router.condition(0, at) is Condition.UP


def test_late_ends_of_earlier_requests_change_no_cooldown():
    router = Router([pipeline("a")])
    early = [router.choose(1, 1, 0.0) for _ in range(3)]
    assert router.end(early[0], Ending.FAILED, 0.0, is_down=True)
    assert not router.end(early[1], Ending.FAILED, 0.5, is_down=True)
    assert not router.end(early[2], Ending.COMPLETED, 0.5)
    assert router.choose(1, 1, 0.9) == Refusal(Why.DOWN, 1.0)


def test_a_server_says_for_how_long_it_takes_nothing():
    router = Router([pipeline("a"), pipeline("b")])
    assert router.end(router.choose(1, 1, 0.0), Ending.FAILED, 0.0, retry_after_s=30.0)
    assert router.choose(1, 1, 29.0).pipeline == 1
    assert router.choose(1, 1, 29.0, avoid=(1,)) == Refusal(Why.TRIED, 30.0)


# --- estimates --------------------------------------------------------------------------------


def test_a_pipeline_that_slows_down_loses_load_at_once():
    router = Router([pipeline("a"), pipeline("b", 1.5 * 2.0**-10)])
    ticket = router.choose(100, 100, 0.0)
    assert ticket.pipeline == 0
    slow = Measured(prompt_tokens=100, output_tokens=100, busy_s=100.0)
    router.end(ticket, Ending.COMPLETED, 100.0, measured=slow)
    assert router.choose(100, 100, 100.0).pipeline == 1


def test_estimates_reach_the_seconds_of_the_server():
    router = Router([pipeline("a")])
    for n in range(200):
        n_prompt, n_output = 50 + 37 * n % 400, 20 + 53 * n % 300
        measured = Measured(
            prompt_tokens=n_prompt,
            output_tokens=n_output,
            prompt_s=n_prompt * 0.003,
            output_s=n_output * 0.02,
        )
        ticket = router.choose(n_prompt, n_output, 0.0)
        router.end(ticket, Ending.COMPLETED, 0.0, measured=measured)
    assert router.estimate(0).prompt_token_s == pytest.approx(0.003, rel=1e-6)
    assert router.estimate(0).output_token_s == pytest.approx(0.02, rel=1e-6)


def test_lengths_are_learnt():
    router = Router([pipeline("a")])
    assert (router.prompt_tokens(400), router.expected_output_tokens()) == (100, 256)
    for _ in range(60):
        router.count_prompt(400, 200)
        measured = Measured(prompt_tokens=200, output_tokens=40)
        router.end(router.choose(1, 1, 0.0), Ending.COMPLETED, 0.0, measured=measured)
    assert (router.prompt_tokens(400), router.expected_output_tokens()) == (200, 40)
    assert router.prompt_tokens(0) == 1


def test_no_count_of_a_server_makes_later_requests_impossible():
    router = Router([pipeline("a")])
    for _ in range(60):
        router.count_prompt(1, MAX_TOKENS - 1)
    assert router.prompt_tokens(2**24) == MAX_TOKENS
    assert isinstance(router.choose(router.prompt_tokens(2**24), 1, 0.0), Ticket)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: pipeline("a", 0.0), ValueError, "prompt_token_s must be positive"),
        (lambda: pipeline("a", concurrency=0.5), ValueError, "concurrency must be"),
        (lambda: pipeline("a", max_in_flight=0), ValueError, "max_in_flight must be at"),
        (lambda: pipeline(""), ValueError, "name must not be empty"),
        (lambda: Router([]), ValueError, "pipelines must hold at least one"),
        (lambda: Router([pipeline("a")] * 2), ValueError, "must differ, got 'a' again"),
        (lambda: Router([pipeline("a")], 3), TypeError, "params must be a RouterParams, got 3"),
        (lambda: RouterParams(estimate_weight=2), ValueError, "must be at most 1, got 2.0"),
        (lambda: RouterParams(max_failures=0), ValueError, "max_failures must be at least 1"),
        (lambda: RouterParams(max_cooldown_s=0.5), ValueError, "max_cooldown_s must"),
        (lambda: Router([pipeline("a")]).choose(0, 1, 0.0), ValueError, "prompt_tokens must"),
        (lambda: Router([pipeline("a")]).choose(1, 1.5, 0.0), TypeError, "output_tokens must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_probe_that_a_health_check_overtook_counts_as_any_request():
    """A check brings the pipeline up while a probe is under way; then it goes down again."""
    router = Router([pipeline("a")])
    router.end(router.choose(1, 1, 0.0), Ending.FAILED, 0.0, is_down=True)
    old = router.choose(1, 1, 1.0)
    assert old.is_probe
    router.check(0, True, 1.0)
    other = Router([pipeline("a")])
    other.end(other.choose(1, 1, 0.0), Ending.FAILED, 0.0, is_down=True)
    alone = other.choose(1, 1, 1.0)
    other.check(0, True, 1.0)
    assert not other.end(alone, Ending.FAILED, 1.0)  # one failure of three
    assert other.condition(0, 1.0) is Condition.UP
    router.end(router.choose(1, 1, 1.0), Ending.FAILED, 1.0, is_down=True)
    assert router.choose(1, 1, 2.0) == Refusal(Why.DOWN, 3.0)  # no request has succeeded
    assert router.choose(1, 1, 3.0).is_probe
    router.end(old, Ending.CANCELLED, 3.0)
    assert router.choose(1, 1, 3.0) == Refusal(Why.DOWN, math.inf)  # a probe is under way


def test_a_good_health_check_takes_no_failure_of_requests_back():
    """A server that answers /health but hangs on completions cools down, ever longer."""
    router = Router([pipeline("a")])
    now_s = 0.0
    for cooldown_s in (1.0, 2.0, 4.0):
        for n in range(3):
            assert not router.check(0, True, now_s)
            assert router.end(router.choose(1, 1, now_s), Ending.FAILED, now_s) == (n == 2)
        assert not router.check(0, True, now_s + cooldown_s / 2)
        assert router.choose(1, 1, now_s) == Refusal(Why.DOWN, now_s + cooldown_s)
        now_s += cooldown_s
        assert router.check(0, True, now_s)
        assert router.condition(0, now_s) is Condition.UP
    router.end(router.choose(1, 1, now_s), Ending.COMPLETED, now_s)
    router.end(router.choose(1, 1, now_s), Ending.FAILED, now_s, is_down=True)
    assert router.choose(1, 1, now_s) == Refusal(Why.DOWN, now_s + 1.0)


def test_a_good_health_check_does_not_shorten_what_the_server_asked_for():
    router = Router([pipeline("a")])
    router.end(router.choose(1, 1, 0.0), Ending.FAILED, 0.0, retry_after_s=30.0)
    assert not router.check(0, True, 29.0)
    assert router.choose(1, 1, 29.0) == Refusal(Why.DOWN, 30.0)
    assert router.check(0, True, 30.0)


def test_a_cooldown_that_a_health_check_began_ends_with_the_next_good_one():
    router = Router([pipeline("a")])
    assert router.check(0, False, 0.0)
    assert router.condition(0, 0.5) is Condition.COOLING
    assert router.check(0, True, 0.5)
    assert router.condition(0, 0.5) is Condition.UP
