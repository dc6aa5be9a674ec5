"""Requests from files: every format, every option; wrong files are refused."""

import csv
import gzip
import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve.formats.request_traces import read_requests

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("HYPSOLVE_SHARED", ROOT.parent / "shared")) / "data" / "traces"
needs_traces = pytest.mark.skipif(
    not TRACES.is_dir(), reason="traces not here: set HYPSOLVE_SHARED"
)

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.9799600,4808,10
2023-11-17 00:00:00.0000001,3180,8
2023-11-17 00:00:01,110,27
"""
OWN = """arrival_s,prompt_tokens,output_tokens
0.5,10,1
2.0,20,2
2.0,30,3
7.25,40,4
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": []}
{"timestamp": 27482.5, "input_length": 655, "output_length": 1}
"""
EACH = {"azure": AZURE, "hypsolve": OWN, "mooncake": MOONCAKE}


def write(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(tmp_path, text, **options):
    return read_requests(write(tmp_path, text), **options)


def test_whole_numbers_may_have_a_point_as_pandas_writes_them(tmp_path):
    assert lists(read(tmp_path, OWN.replace(",40", ",40.0"))) == lists(read(tmp_path, OWN))


def lists(requests):
    return (
        requests.arrival_s.tolist(),
        requests.prompt_tokens.tolist(),
        requests.output_tokens.tolist(),
    )


# formats


def test_each_format_is_read_and_recognised(tmp_path):
    azure = ([0.0, 0.0200401, 1.02004], [4808, 3180, 110], [10, 8, 27])
    own = ([0.5, 2.0, 2.0, 7.25], [10, 20, 30, 40], [1, 2, 3, 4])
    mooncake = ([0.0, 0.0, 27.4825], [6758, 7322, 655], [500, 490, 1])
    for (format, text), expected in zip(EACH.items(), (azure, own, mooncake), strict=True):
        assert lists(read(tmp_path, text)) == expected
        assert lists(read(tmp_path, text, format=format)) == expected


@pytest.mark.parametrize("text", EACH.values(), ids=EACH)
def test_details_of_text_files_do_not_matter(tmp_path, text):
    """Byte order mark, Windows line ends, blank lines, no final line end, gzip."""
    expected = lists(read(tmp_path, text))
    for same in (
        b"\xef\xbb\xbf" + text.encode(),
        text.replace("\n", "\r\n"),
        text + "\n  \n\r\n",
        "\n" + text.replace("\n", "\n\n"),
        text.rstrip("\n"),
    ):
        assert lists(read(tmp_path, same)) == expected
    packed = write(tmp_path, gzip.compress(text.encode()), "trace.csv.gz")
    assert lists(read_requests(str(packed))) == expected


def test_csv_fields_may_be_quoted_and_columns_in_any_order(tmp_path, caplog):
    quoted = '"output_tokens", "note","arrival_s","prompt_tokens"\n"7", "a, ""b""\nc",0.5, 9 \n'
    with caplog.at_level(logging.INFO, "hypsolve"):
        assert lists(read(tmp_path, quoted)) == ([0.5], [9], [7])
    assert "trace.csv: columns ignored: note" in caplog.text
    wrong_below = quoted + "7,x,0.6,0\n"  # the second row ends on line 3: this is line 4
    with pytest.raises(ValueError, match="line 4: prompt_tokens must be a whole number from 1"):
        read(tmp_path, wrong_below)


@pytest.mark.parametrize(
    ("first", "second", "gap_s"),
    [
        ("2023-11-16 18:17:03.9799600", "2023-11-16 18:17:03.9799601", 1e-7),
        ("2023-11-16T18:17:03", "2023-11-16 18:17:03.000000001", 1e-9),
        ("2024-02-28 23:59:59.5", "2024-03-01 00:00:00.25", 86400.75),
        ("2023-02-28 23:59:59.5", "2023-03-01 00:00:00.25", 0.75),
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01+00:00", 0.99007),
        ("2024-05-10T00:00:00Z", "2024-05-10T00:30:00.25-0130", 7200.25),
        ("2024-05-10T02:00:00+02:00", "2024-05-10T00:00:01Z", 1.0),
    ],
)
def test_times_are_exact(tmp_path, first, second, gap_s):
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n{first},1,1\n{second},1,1\n"
    assert read(tmp_path, text).arrival_s.tolist() == [0.0, gap_s]


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10**16), st.integers(1, 2**40), st.integers(1, 2**40)),
        min_size=1,
        max_size=20,
    )
)
def test_round_trips_are_exact(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("trips")
    rows.sort()
    ns = np.array([row[0] for row in rows]) // 100 * 100
    tokens = [row[1:] for row in rows]
    stamps = (np.datetime64("2023-11-16T18:15:46.680590100", "ns") + ns).astype(str)
    lines = "".join(f"{s[:-2]},{p},{o}\n" for s, (p, o) in zip(stamps, tokens, strict=True))
    azure = read(folder, "TIMESTAMP,ContextTokens,GeneratedTokens\n" + lines)
    assert azure.arrival_s.tolist() == [int(t - ns[0]) / 1e9 for t in ns]

    times = [float(t) / 7e8 for t in ns]
    lines = "".join(f"{t!r},{p},{o}\n" for t, (p, o) in zip(times, tokens, strict=True))
    own = read(folder, "arrival_s,prompt_tokens,output_tokens\n" + lines)
    assert own.arrival_s.tolist() == times

    keys = ("timestamp", "input_length", "output_length")
    ms = [int(t) // 10**6 for t in ns]
    lines = "".join(
        json.dumps(dict(zip(keys, (t, *row), strict=True))) + "\n"
        for t, row in zip(ms, tokens, strict=True)
    )
    mooncake = read(folder, lines)
    assert mooncake.arrival_s.tolist() == [t / 1000 for t in ms]
    for requests in (azure, own, mooncake):
        assert list(map(list, zip(*tokens, strict=True))) == list(lists(requests)[1:])


# what is wrong with a file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold at least one request, got an empty file"),
        ("\n \n", "must hold at least one request, got an empty file"),
        (AZURE.splitlines()[0], "must hold at least one request, got none"),
        (
            "1,2,3\n",
            "line 1: must name the columns TIMESTAMP, .* or be a JSON object, got '1,2",
        ),
        ("\n[1, 2]\n", r"line 2: must name the columns .*, got '\[1, 2\]'"),
        (OWN.replace("arrival_s", "arrival"), "line 1: must name the columns TIMESTAMP"),
        (
            OWN.replace("tokens\n", "tokens,arrival_s\n"),
            "line 1: must name the column arrival_s once, got 'arrival_s, prompt_tokens, outp",
        ),
        (OWN.replace("2.0,20", "2.0"), "line 3: must have 3 columns as the header, got 2"),
        (OWN.replace("2.0,20", "2,0,20"), "line 3: must have 3 columns as the header, got 4"),
        (OWN.replace("7.25,40,4", '7.25,40,"4'), "line 5: not CSV: unexpected end of data"),
        (OWN.replace("7.25,40,4", '7.25,40,"4"5'), "line 5: not CSV: ',' expected after '\"'"),
        (OWN + "9,1," + "1" * 200_000, "line 6: not CSV: field larger than field limit"),
        (
            OWN + "9,1," + "1" * 5000,
            r"line 6: output_tokens must be a whole number .*, got '11",
        ),
        (OWN.replace("7.25", "x"), "line 5: arrival_s must be a finite number >= 0, got 'x'"),
        (OWN.replace("7.25", ""), "line 5: arrival_s must be a finite number >= 0, got ''"),
        (OWN.replace("7.25", "nan"), "line 5: arrival_s must be a finite .* got 'nan'"),
        (OWN.replace("7.25", "inf"), "line 5: arrival_s must be a finite .* got 'inf'"),
        (OWN.replace("7.25", "7_25"), "line 5: arrival_s must be a finite .* got '7_25'"),
        (OWN.replace("7.25", "\u0661"), "line 5: arrival_s must be a finite .* got '\u0661'"),
        (OWN.replace("7.25", "-1"), "line 5: arrival_s must be a finite .* got '-1'"),
        (OWN.replace(",40", ",0"), "line 5: prompt_tokens must be a whole .* from 1 to .* '0'"),
        (OWN.replace(",40", ",4.5"), "line 5: prompt_tokens must be a whole .* got '4.5'"),
        (OWN.replace(",40", ",-4"), "line 5: prompt_tokens must be a whole .* got '-4'"),
        (OWN.replace(",40", ",4²"), "line 5: prompt_tokens must be a whole .* got '4²'"),
        (OWN.replace(",40", ",٤"), "line 5: prompt_tokens must be a whole .* got '٤'"),
        (OWN.replace(",40", ",\0"), r"line 5: prompt_tokens must be a whole .* got '\\x00'"),
        (
            OWN.replace("40,4", f"40,{2**40 + 1}"),
            r"line 5: output_tokens must be a whole number from 0 to 2\*\*40, got '10995",
        ),
        (
            AZURE.replace("-17 00:00:01", "-17"),
            "line 4: TIMESTAMP must be a time like 2023-11-1",
        ),
        (AZURE.replace("00:00:01", "00:00:60"), "line 4: TIMESTAMP must be a time like"),
        (AZURE.replace("00:00:01", "24:00:01"), "line 4: TIMESTAMP must be a time like"),
        (AZURE.replace("00:00:01", "00:00:01.1234567890"), "line 4: TIMESTAMP must be a time"),
        (
            AZURE.replace("17 00:00:01", "31 00:00:01"),
            "line 4: TIMESTAMP must be a day of the ca",
        ),
        (
            AZURE.replace("2023-11-17 00:00:01", "1700179201"),
            "line 4: TIMESTAMP must be a time l",
        ),
        (
            AZURE.replace("00:00:01", "00:00:01Z"),
            "line 4: TIMESTAMP must be a time without a zone, as the first row, got '2023",
        ),
        (
            AZURE.replace("9600,", "9600Z,"),
            "line 3: TIMESTAMP must be a time with a zone, as the first row, got '2023",
        ),
        (MOONCAKE + "{", "line 4: must be a JSON object, got '{'"),
        (MOONCAKE + "[1, 2]", r"line 4: must be a JSON object, got '\[1, 2\]'"),
        (MOONCAKE + '{"a": ' * 9999, "line 4: must be a JSON object, got"),
        (MOONCAKE.replace("27482.5", "1" * 5000), "line 3: must be a JSON object, got"),
        (
            MOONCAKE.replace('"input_length": 655, ', ""),
            "line 3: key 'input_length' is missing",
        ),
        (MOONCAKE.replace("27482.5", '"3"'), "line 3: timestamp must be a number of millisec"),
        (MOONCAKE.replace("27482.5", "true"), "line 3: timestamp must be a number of millisec"),
        (MOONCAKE.replace("27482.5", "NaN"), "line 3: timestamp must be a finite number >= 0"),
        (
            MOONCAKE.replace("27482.5", "1e999"),
            "line 3: timestamp must be a finite number >= 0",
        ),
        (MOONCAKE.replace("27482.5", "9" * 200), "line 3: timestamp must be a finite number"),
        (MOONCAKE.replace("27482.5", "-1"), "line 3: timestamp must be a finite .* got -1"),
        (
            MOONCAKE.replace("655", "655.0"),
            r"line 3: input_length must be a whole .* got 655\.0",
        ),
        (MOONCAKE.replace("655", "true"), "line 3: input_length must be a whole .* got True"),
        (
            MOONCAKE.replace("490", '"490"'),
            "line 2: output_length must be a whole .* got '490'",
        ),
        (MOONCAKE.replace("490", "-1"), "line 2: output_length must be a whole number from 0"),
        (OWN.encode() + b"\xff", "must be UTF-8 text: 'utf-8' codec can't decode"),
        (OWN.encode("utf-16"), "must be UTF-8 text: 'utf-8' codec can't decode"),
    ],
)
def test_a_wrong_file_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"trace\.csv: {message}") as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("format", "message"),
    [
        (
            "azure",
            r"trace\.csv: line 1: must name the column TIMESTAMP once, got 'arrival_s, p",
        ),
        ("mooncake", r"trace\.csv: line 1: must be a JSON object, got 'arrival_s,prompt"),
        (
            "burst",
            "unknown format 'burst'; did you mean burstgpt. choose one of auto, azure,",
        ),
    ],
)
def test_the_format_given_must_be_that_of_the_file(tmp_path, format, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, OWN, format=format)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"unsorted": "ignore"}, ValueError, "unknown unsorted 'ignore'; choose one of error,"),
        ({"zero_output": "two"}, ValueError, "unknown zero_output 'two'; choose one of error"),
        ({"longer": True}, ValueError, "unknown longer True; choose one of error, drop, clip"),
        ({"start_s": -1}, ValueError, "read_requests: start_s must be finite and not negative"),
        ({"start_s": 3, "end_s": 3}, ValueError, "end_s must be above start_s = 3, got 3"),
        ({"end_s": 0}, ValueError, "read_requests: end_s must be above start_s = 0, got 0"),
        ({"end_s": "1"}, TypeError, "read_requests: end_s must be a number, got '1'"),
        ({"max_tokens": 1}, ValueError, "read_requests: max_tokens must be at least 2, got 1"),
        ({"max_tokens": 9.0}, TypeError, "max_tokens must be a whole number, got 9.0"),
        ({"sample": 0}, ValueError, "read_requests: sample must be positive and finite, got 0"),
        ({"sample": 1.5}, ValueError, r"read_requests: sample must be in \(0, 1\], got 1.5"),
        ({"n_requests": 0}, ValueError, "read_requests: n_requests must be at least 1, got 0"),
        ({"rate_per_s": 0}, ValueError, "rate_per_s must be positive and finite, got 0"),
        (
            {"speedup": -2},
            ValueError,
            "read_requests: speedup must be positive and finite, got",
        ),
        ({"speedup": True}, TypeError, "read_requests: speedup must be a number, got True"),
        ({"speedup": 2, "rate_per_s": 1}, ValueError, "give rate_per_s or speedup, not both"),
        ({"seed": -1}, ValueError, "read_requests: seed must be at least 0, got -1"),
        ({"max_bytes": 20}, ValueError, r"trace\.csv: file must have at most 20 bytes, got 75"),
        ({"max_bytes": None}, TypeError, "max_bytes must be a whole number, got None"),
        ({"speedup": 5e-324}, ValueError, "requests: arrival_s must be finite .* got inf"),
        ({"rate_per_s": 5e-324}, ValueError, "requests: arrival_s must be finite .* got inf"),
        ({"start_s": 100}, ValueError, r"trace\.csv: no request is left of 4 that were read"),
        (
            {"start_s": 1, "end_s": 3, "rate_per_s": 1},
            ValueError,
            r"trace\.csv: rate_per_s needs arrivals at two times, got 2 at one",
        ),
    ],
)
def test_wrong_options_are_refused_by_name(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        read(tmp_path, OWN, **options)


def test_wrong_paths(tmp_path):
    with pytest.raises(
        TypeError, match="read_requests: path must be a string or a path, got N"
    ):
        read_requests(None)
    with pytest.raises(OSError, match=r"nowhere\.csv"):
        read_requests(tmp_path / "nowhere.csv")
    bomb = write(tmp_path, gzip.compress(OWN.encode() + b"\n" * 9999), "trace.csv.gz")
    with pytest.raises(ValueError, match="file must have at most 5000 bytes when unpacked"):
        read_requests(bomb, max_bytes=5000)


# options


def test_unsorted_rows_are_an_error_or_sorted(tmp_path, caplog):
    lines = AZURE.splitlines()
    text = "\n".join([lines[0], lines[3], lines[2], lines[1]])
    message = r"line 3: TIMESTAMP must not be earlier than on line 2 \(.*\), got 1 s earlier"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)
    with caplog.at_level(logging.INFO, "hypsolve"):
        assert lists(read(tmp_path, text, unsorted="sort")) == lists(read(tmp_path, AZURE))
    assert "sorted; 2 rows were earlier than the one before" in caplog.text


def test_sorting_keeps_the_order_of_equal_arrivals(tmp_path):
    text = OWN + "2.0,50,5\n0.5,60,6\n"
    assert lists(read(tmp_path, text, unsorted="sort")) == (
        [0.5, 0.5, 2.0, 2.0, 2.0, 7.25],
        [10, 60, 20, 30, 50, 40],
        [1, 6, 2, 3, 5, 4],
    )


def test_requests_without_output(tmp_path, caplog):
    text = OWN.replace("30,3", "30,0")
    with pytest.raises(ValueError, match=r"trace\.csv: line 4: output_tokens must be at least 1"
                       r" \(or zero_output be 'drop' or 'one'\), got 0"):  # fmt: skip
        read(tmp_path, text)
    assert len(read(tmp_path, text, end_s=2.0)) == 1  # not there
    with caplog.at_level(logging.INFO, "hypsolve"):
        dropped = read(tmp_path, text, zero_output="drop")
        assert lists(dropped) == ([0.5, 2.0, 7.25], [10, 20, 40], [1, 2, 4])
        assert read(tmp_path, text, zero_output="one").output_tokens.tolist() == [1, 2, 1, 4]
    assert "trace.csv: dropped 1 of 4 requests: without output" in caplog.text
    assert "trace.csv: 1 requests without output take 1 token" in caplog.text
    assert len(read(tmp_path, OWN, zero_output="drop")) == 4


def test_requests_with_too_many_tokens(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"trace\.csv: line 4: prompt_tokens \+ output_tokens "
                       r"must be at most max_tokens = 22 .*, got 33"):  # fmt: skip
        read(tmp_path, OWN, max_tokens=22)
    assert len(read(tmp_path, OWN, max_tokens=44)) == 4
    with caplog.at_level(logging.INFO, "hypsolve"):
        assert read(tmp_path, OWN, max_tokens=22, longer="drop").prompt_tokens.tolist() == [
            10,
            20,
        ]
        clipped = read(tmp_path, OWN, max_tokens=22, longer="clip")
    assert lists(clipped)[1:] == ([10, 20, 19, 18], [1, 2, 3, 4])
    assert "trace.csv: dropped 2 of 4 requests: more than 22 tokens" in caplog.text
    assert "trace.csv: clipped 2 requests to 22 tokens" in caplog.text
    tight = read(tmp_path, OWN, max_tokens=4, longer="clip")
    assert lists(tight)[1:] == ([3, 2, 1, 1], [1, 2, 3, 3])


def test_a_window_starts_at_zero(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hypsolve"):
        window = read(tmp_path, OWN, start_s=1, end_s=7.25)
    assert lists(window) == ([1.0, 1.0], [20, 30], [2, 3])
    assert "trace.csv: dropped 2 of 4 requests: not in 1 <= t < 7.25 s" in caplog.text
    assert read(tmp_path, OWN, end_s=7.25).arrival_s.tolist() == [0.5, 2.0, 2.0]
    assert read(tmp_path, OWN, start_s=7.25).arrival_s.tolist() == [0.0]
    # the first row of the trace is its time 0, also where that is not kept
    assert read(tmp_path, AZURE, start_s=0.5).arrival_s.tolist() == pytest.approx([0.52004])


def test_time_can_be_stretched(tmp_path):
    assert read(tmp_path, OWN, speedup=0.5).arrival_s.tolist() == [1.0, 4.0, 4.0, 14.5]
    calm = read(tmp_path, OWN, rate_per_s=0.25)
    np.testing.assert_allclose(calm.arrival_s, read(tmp_path, OWN).arrival_s * 12 / 6.75)
    assert 3 / (calm.arrival_s[-1] - calm.arrival_s[0]) == pytest.approx(0.25)
    pair = read(tmp_path, OWN, n_requests=2, rate_per_s=2.0)  # of what is kept
    assert np.diff(pair.arrival_s) == pytest.approx([0.5])


def test_a_sample_is_seeded_and_nested(tmp_path, caplog):
    text = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
        f"{i},{i + 1},1\n" for i in range(4000)
    )
    with caplog.at_level(logging.INFO, "hypsolve"):
        some = read(tmp_path, text, sample=0.3, seed=1)
    assert f"dropped {4000 - len(some)} of 4000 requests: not in the sample of" in caplog.text
    assert lists(some) == lists(read(tmp_path, text, sample=0.3, seed=1))
    assert len(some) == pytest.approx(1200, abs=4 * np.sqrt(4000 * 0.3 * 0.7))
    more = read(tmp_path, text, sample=0.6, seed=1)
    assert set(some.prompt_tokens) < set(more.prompt_tokens)
    assert set(some.prompt_tokens) != set(read(tmp_path, text, sample=0.3).prompt_tokens)
    assert (some.prompt_tokens == some.arrival_s + 1).all()
    assert len(read(tmp_path, text, sample=1.0)) == 4000


ROW = st.tuples(st.integers(0, 20), st.integers(1, 30), st.integers(0, 30))


@given(
    rows=st.lists(ROW, min_size=1, max_size=12),
    start_s=st.none() | st.integers(0, 10),
    end_s=st.none() | st.integers(11, 20),
    zero_output=st.sampled_from(["drop", "one"]),
    max_tokens=st.none() | st.integers(2, 40),
    longer=st.sampled_from(["drop", "clip"]),
    n_requests=st.none() | st.integers(1, 8),
    speedup=st.none() | st.sampled_from([0.5, 4.0]),
)
def test_options_apply_in_their_order(tmp_path_factory, rows, **options):
    """The reference is a plain loop over the rows."""
    expected = []
    start_s, end_s, limit = options["start_s"], options["end_s"], options["max_tokens"]
    for at, prompt, output in sorted(rows, key=lambda row: row[0]):
        at -= start_s or 0
        if at < 0 or (end_s is not None and at + (start_s or 0) >= end_s):
            continue
        if not output and options["zero_output"] == "drop":
            continue
        output = output or 1
        if limit is not None and prompt + output > limit:
            if options["longer"] == "drop":
                continue
            while prompt > 1 and prompt + output > limit:
                prompt -= 1
            while prompt + output > limit:
                output -= 1
        expected.append((at / (options["speedup"] or 1), prompt, output))
    expected = expected[: options["n_requests"]]
    text = io.StringIO()
    csv.writer(text).writerows([("arrival_s", "prompt_tokens", "output_tokens"), *rows])
    folder = tmp_path_factory.mktemp("options")
    if not expected:
        with pytest.raises(ValueError, match="no request is left of"):
            read(folder, text.getvalue(), unsorted="sort", **options)
        return
    requests = read(folder, text.getvalue(), unsorted="sort", **options)
    assert list(zip(*lists(requests), strict=True)) == expected


def test_nothing_is_logged_where_nothing_is_lost(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hypsolve"):
        for text in EACH.values():
            read(tmp_path, text, zero_output="drop", max_tokens=9999, longer="drop", end_s=99)
    assert not caplog.records


# real traces


@needs_traces
@pytest.mark.parametrize(
    ("name", "n_requests"),
    [
        ("azure_llm_2023_conv", 13_828),
        ("azure_llm_2023_code", 7_148),
        ("mooncake_conversation", 7_689),
        ("mooncake_synthetic", 2_600),
    ],
)
def test_real_traces_are_read_as_they_are(name, n_requests):
    path = TRACES / f"{name}.csv"
    requests = read_requests(path)
    assert len(requests) == n_requests
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    np.testing.assert_array_equal(np.column_stack(lists(requests)), table)


@needs_traces
def test_the_columns_of_burstgpt(tmp_path):
    """Written by hand; a failed request has no output."""
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    rows = ["5,ChatGPT,472,18,490,Conversation log", "45.5,GPT-4,300,0,300,API log"]
    rows += ["118,GPT-4,417,276,693,Conversation log"]
    found = read(tmp_path, "\n".join([header, *rows]), zero_output="drop")
    assert lists(found) == ([5.0, 118.0], [472, 417], [18, 276])
    with pytest.raises(ValueError, match="line 3: Response tokens must be at least 1"):
        read(tmp_path, "\n".join([header, *rows]))


@needs_traces
def test_a_real_trace_in_the_columns_of_azure(tmp_path):
    own = read_requests(TRACES / "azure_llm_2023_conv.csv")
    stamps = np.datetime64("2023-11-16T18:15:46.68059", "ns") + np.rint(
        own.arrival_s * 1e9
    ).astype("timedelta64[ns]")
    rows = zip(stamps.astype(str), own.prompt_tokens, own.output_tokens, strict=True)
    lines = [f"{stamp.replace('T', ' ')[:-2]},{p},{o}" for stamp, p, o in rows]
    azure = read(tmp_path, "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    assert lists(azure) == lists(own)
    fast = read(tmp_path, "\n".join([AZURE.splitlines()[0], *lines]), rate_per_s=20.0)
    assert (len(fast) - 1) / fast.arrival_s[-1] == pytest.approx(20.0)
