"""Claims: their verdicts, their errors, and their numbers as text."""

import math

import numpy as np
import pandas as pd
import pytest

from lmech import formats
from lmech.claims import Claim, exit_code, judge, parse, verdict
from lmech.values import ConfigError

STATED = {
    "claim": "the ratio is about one",
    "quantity": "ratio",
    "interval": [0.0, 1.0],
    "source": "theory",
    "expected": "holds",
}


def claim(**changes):
    return Claim(**{**STATED, "interval": (0.0, 1.0), **changes})


def measured(values, **columns):
    return pd.DataFrame({"ratio": values, **columns})


# verdicts


@pytest.mark.parametrize(
    ("values", "aggregate", "number", "expected"),
    [
        ([0.25, 0.75], "every", 0.5, "holds"),
        ([0.1, 0.2, 3.0], "every", 1.1, "fails"),
        ([0.1, 0.2, 3.0], "mean", 1.1, "fails"),
        ([0.1, 0.2, 3.0], "median", 0.2, "holds"),
        ([-0.6, 1.2, 1.5], "every", 0.7, "fails"),
        ([-0.6, 1.2, 1.5], "mean", 0.7, "holds"),
        ([-0.6, 1.2, 1.5], "median", 1.2, "fails"),
    ],
)
def test_a_claim_is_about_every_measurement_or_their_mean_or_median(
    values, aggregate, number, expected
):
    line = judge(claim(aggregate=aggregate), measured(values))
    assert line["verdict"] == expected
    assert line["measured"] == pytest.approx(number)
    assert line["values"] == values
    assert line["aggregate"] == aggregate


@pytest.mark.parametrize(
    ("value", "interval", "expected"),
    [
        (0.0, (0.0, 1.0), "holds"),
        (1.0, (0.0, 1.0), "holds"),
        (np.nextafter(0, -1), (0.0, 1.0), "fails"),
        (np.nextafter(1, 2), (0.0, 1.0), "fails"),
        (-1e300, (None, 1.0), "holds"),
        (2.0, (None, 1.0), "fails"),
        (1e300, (0.0, None), "holds"),
        (-1.0, (0.0, None), "fails"),
        (-1e300, (None, None), "holds"),
    ],
)
def test_an_interval_includes_its_ends_and_may_be_open(value, interval, expected):
    assert verdict([value], interval, "holds") == expected


@pytest.mark.parametrize("expected", ["holds", "fails", "open"])
@pytest.mark.parametrize("aggregate", ["every", "mean", "median"])
def test_a_missing_number_leaves_a_claim_undetermined(aggregate, expected):
    line = judge(claim(aggregate=aggregate, expected=expected), measured([0.5, np.nan]))
    assert line["verdict"] == "undetermined"


@pytest.mark.parametrize("expected", ["holds", "fails", "open"])
def test_no_measurement_leaves_a_claim_undetermined(expected):
    frame = measured([0.5], seed=[0])
    line = judge(claim(where={"seed": 1}, expected=expected), frame)
    assert line["verdict"] == "undetermined"
    assert line["measured"] is None
    assert line["values"] == []


@pytest.mark.parametrize(
    ("values", "expected", "result"),
    [
        ([0.5, 2.0], "holds", "fails"),
        ([0.5, 2.0], "open", "fails"),
        ([0.5, 2.0], "fails", "holds"),
        ([0.5, 0.6], "holds", "holds"),
        ([0.5, 0.6], "fails", "holds"),
        ([2.0, -3.0], "holds", "fails"),
        ([2.0, -3.0], "fails", "fails"),
    ],
)
def test_a_mixed_outcome_counts_against_what_was_expected(values, expected, result):
    assert judge(claim(expected=expected), measured(values))["verdict"] == result


# judging measurements


@pytest.mark.parametrize(
    ("where", "jobs"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"optimizer": "sgd"}, ["a", "b"]),
        ({"seed": [1, 2]}, ["b", "c", "d"]),
        ({"optimizer": "adam", "seed": [0, 2]}, ["d"]),
    ],
)
def test_where_selects_by_a_value_or_a_list_of_them(where, jobs):
    frame = measured(
        [0.1, 0.2, 0.3, 0.4],
        job=["a", "b", "c", "d"],
        seed=[0, 1, 1, 2],
        optimizer=["sgd", "sgd", "adam", "adam"],
    )
    line = judge(claim(where=where), frame)
    rows = frame[frame["job"].isin(jobs)]
    assert line["jobs"] == jobs
    assert line["values"] == rows["ratio"].tolist()
    assert line["seeds"] == sorted(set(rows["seed"]))
    assert line["where"] == where


def test_a_line_repeats_what_was_claimed():
    line = judge(claim(predicted=0.9, unit="η", interval=(None, 1.0)), measured([0.5]))
    stated = {**STATED, "predicted": 0.9, "unit": "η", "interval": (None, 1.0)}
    del stated["quantity"]
    assert stated.items() <= line.items()


def test_an_unknown_quantity_is_an_error_that_names_the_claim_and_the_columns():
    with pytest.raises(ConfigError) as error:
        judge(claim(quantity="ration"), measured([1.0], seed=[0]))
    for part in (STATED["claim"], "ration", "ratio, seed"):
        assert part in str(error.value)


# parsing


def test_a_parsed_claim_is_what_the_yaml_says():
    full = {**STATED, "interval": [None, 2], "where": {"seed": [0]}, "aggregate": "median"}
    first, second = parse([STATED, full])
    assert first == claim()
    assert second == claim(interval=(None, 2.0), where={"seed": [0]}, aggregate="median")


def without(key):
    return {name: value for name, value in STATED.items() if name != key}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({**STATED, "agregate": "mean"}, r"claims\.1: no key 'agregate'; did you mean 'aggregate'"),
        (without("interval"), r"claims\.1\.interval: .*required"),
        (without("source"), r"claims\.1\.source: .*required"),
        ({**STATED, "expected": "maybe"}, r"claims\.1\.expected: .*'holds'"),
        ({**STATED, "interval": [1]}, r"claims\.1\.interval"),
        ({**STATED, "interval": ["low", 1]}, r"claims\.1\.interval"),
    ],
)
def test_a_wrong_claim_is_an_error_that_names_it_by_number(wrong, message):
    with pytest.raises(ConfigError, match=message):
        parse([STATED, wrong])


# the exit code


@pytest.mark.parametrize(
    ("pairs", "code"),
    [
        ([], 0),
        (["holds/holds", "fails/fails"], 0),
        (["fails/holds"], 1),
        (["holds/fails"], 1),
        (["undetermined/holds"], 2),
        (["undetermined/fails", "holds/holds"], 2),
        (["undetermined/holds", "fails/holds"], 1),
        (["holds/open", "fails/open", "undetermined/open"], 0),
    ],
)
def test_the_exit_code_is_0_as_expected_1_against_it_2_undetermined(pairs, code):
    results = [dict(zip(("verdict", "expected"), pair.split("/"), strict=True)) for pair in pairs]
    assert exit_code(results) == code


# numbers as text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.23456, "1.235"),
        (123456.0, "1.235e+05"),
        (2.0, "2"),
        (123456, "123456"),
        (None, "–"),
        (math.nan, "–"),
        (np.float64(0.12345), "0.1235"),
        ("word", "word"),
    ],
)
def test_a_number_has_four_digits_and_a_dash_where_it_is_missing(value, text):
    assert formats.number(value) == text


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((0.97, 1.05), "[0.97, 1.05]"),
        ((None, 0.8), "≤ 0.8"),
        ((2.0, None), "≥ 2"),
        ((None, None), "any"),
    ],
)
def test_an_interval_is_a_range_or_a_bound(bounds, text):
    assert formats.interval(bounds) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], ""),
        ([0.5], ""),
        ([2.0, 0.5, 1.0], "0.5 to 2"),
        ([2.0, math.nan, 0.5], "0.5 to 2, 1 missing"),
        ([math.nan, math.nan], ""),
    ],
)
def test_a_spread_is_the_range_of_several_values(values, text):
    assert formats.spread(values) == text


@pytest.mark.parametrize(
    ("found", "expected", "text"),
    [
        ("holds", "holds", "as expected"),
        ("fails", "fails", "as expected"),
        ("fails", "holds", "NOT as expected"),
        ("undetermined", "holds", "NOT as expected"),
        ("fails", "open", "open question"),
    ],
)
def test_a_mark_says_whether_the_verdict_is_the_expected_one(found, expected, text):
    assert formats.mark({"verdict": found, "expected": expected}) == text
