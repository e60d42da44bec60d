"""report.json: the keys of version 1, the round trip, what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fewbits.errors import InputError
from fewbits.report.histogram import histogram
from fewbits.report.record import Candidate, Report
from tests.report import factory

EVERY = [
    factory.full,
    factory.batched,
    factory.ended_early,
    factory.unmet,
    factory.float_kept,
    factory.smallest,
    factory.largest,
]

# Version 1 as promised: each key with the JSON types it may hold.
NUMBER, COUNT, TEXT = (float, int, type(None)), (int, type(None)), (str, type(None))
SCHEMA = {
    "version": int,
    "fewbits": str,
    "machine": {"cpu": str, "isa": list, "threads": COUNT},
    "source": {"path": TEXT, "sha256": TEXT, "size_bytes": int},
    "metric": {"name": str, "higher_is_better": bool, "original": NUMBER},
    "limits": {"max_drop": TEXT, "max_size": TEXT, "min_speedup": NUMBER, "prefer": TEXT},
    "chosen": TEXT,
    "verdict": str,
    "candidates": [
        {
            "name": str,
            "recipe": str,
            "engine": str,
            "path": TEXT,
            "sha256": TEXT,
            "size_bytes": COUNT,
            "size_ratio": NUMBER,
            "latency_ms": {"p50": NUMBER, "p10": NUMBER, "p90": NUMBER},
            "speedup": NUMBER,
            "speedup_low": NUMBER,
            "speedup_high": NUMBER,
            "speedup_vs_bf16": NUMBER,
            "speedup_vs_source": NUMBER,
            "metric": NUMBER,
            "drop": NUMBER,
            "agreement": {"top1": NUMBER, "cosine_min": NUMBER, "sqnr_db": NUMBER},
            "met": (bool, type(None)),
            "failed": list,
            "load_ms": NUMBER,
            "resident_bytes": COUNT,
            "throughput": [{"batch": int, "samples_per_s": NUMBER, "p50_ms": NUMBER, "error": TEXT}],
        }
    ],
    "layers": [
        {
            "name": str,
            "op": str,
            "scheme": str,
            "bits": NUMBER,
            "params": COUNT,
            "bytes": COUNT,
            "weight_sqnr_db": NUMBER,
            "output_sqnr_db": NUMBER,
        }
    ],
    "left_in_float": [{"op": str, "count": int, "why": str}],
    "bytes_by_dtype": dict,
    "interrupted": bool,
    "time_budget_s": NUMBER,
    "estimated_s": NUMBER,
    "not_tried": [{"name": str, "why": str}],
    "timings_s": dict,
}


def breaches(schema: object, value: object, where: str = "report") -> list[str]:
    """Where `value` does not have the schema's keys or types."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        missing = [f"{where}.{key} is missing" for key in schema if key not in value]
        present = [key for key in schema if key in value]
        return missing + [b for key in present for b in breaches(schema[key], value[key], f"{where}.{key}")]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where} is no array"]
        return [b for index, one in enumerate(value) for b in breaches(schema[0], one, f"{where}[{index}]")]
    kinds = schema if isinstance(schema, tuple) else (schema,)
    # In Python True is an int; in JSON it is not a number.
    fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
    return [] if fits else [f"{where} is {value!r}"]


@pytest.mark.parametrize("make", EVERY)
def test_json_has_every_key_of_version_1(make):
    assert breaches(SCHEMA, json.loads(make().to_json())) == []


def test_the_schema_check_can_fail():
    value = json.loads(factory.full().to_json())
    del value["candidates"][2]["speedup_low"]
    value["layers"][0]["bits"] = "8"
    value["metric"]["original"] = True
    assert breaches(SCHEMA, value) == [
        "report.metric.original is True",
        "report.candidates[2].speedup_low is missing",
        "report.layers[0].bits is '8'",
    ]


@pytest.mark.parametrize("make", EVERY)
def test_round_trip(make):
    report = make()
    text = report.to_json()
    assert Report.from_json(text) == report
    assert Report.from_json(text).to_json() == text


@given(
    st.one_of(
        st.floats(),
        st.floats(width=32).map(np.float32),
        st.sampled_from([math.nan, math.inf, -math.inf, np.float64("nan")]),
    )
)
def test_json_never_holds_nan_or_infinity(value):
    one = Candidate(name="a", recipe="w8", engine="e", speedup=value, metric=value)
    report = factory.smallest().model_copy(update={"candidates": (one,), "timings_s": {}})

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    back = json.loads(report.to_json(), parse_constant=refuse)["candidates"][0]["speedup"]
    assert back == (float(value) if math.isfinite(value) else None)


def test_numpy_numbers_become_plain_ones():
    one = Candidate(name="a", recipe="r", engine="e", size_bytes=np.int64(3), size_ratio=np.float32(0.5))
    assert (type(one.size_bytes), type(one.size_ratio)) == (int, float)


def test_unknown_keys_are_ignored_when_read_and_refused_when_built():
    value = json.loads(factory.full().to_json())
    value["later"] = 1
    value["candidates"][0]["later"] = {"a": 2}
    assert Report.from_json(json.dumps(value)) == factory.full()
    with pytest.raises(ValidationError, match="spedup"):
        Candidate(name="a", recipe="r", engine="e", spedup=2.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Invalid JSON"),
        ("[]", "not a fewbits report.json of version 1"),
        ('{"version": 1}', "fewbits: Field required"),
        (factory.smallest().to_json().replace('"version": 1', '"version": 2'), "version"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(text, says):
    with pytest.raises(InputError, match=says) as caught:
        Report.from_json(text)
    assert "\n" not in str(caught.value)


def test_records_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        factory.full().chosen = "other"


@pytest.mark.parametrize("key", ["chosen", "saved", "reference"])
def test_names_must_be_candidates(key):
    with pytest.raises(ValidationError, match=f"{key} is 'nobody'"):
        factory.full(**{key: "nobody"})


def test_candidate_names_must_be_unique():
    with pytest.raises(ValidationError, match="unique"):
        factory.full(candidates=factory.candidates() * 2)


def test_shown_is_the_chosen_else_the_best_so_far():
    assert factory.full().shown == factory.full().candidate("w8a8-mse OV")
    assert factory.unmet().shown.name == "w8a8-mse OV"
    assert factory.smallest().shown is None


def test_histogram_counts_every_weight_in_the_same_bins():
    before = np.random.default_rng(0).normal(size=(64, 9))
    after = np.round(before * 4) / 4
    made = histogram("conv", before, after, why="first")
    assert sum(made.before) == sum(made.after) == before.size
    assert made.edges[0] <= before.min()
    assert made.edges[-1] >= max(before.max(), after.max())
    assert len(made.edges) == 121
    # A quarter's step over about 6.5 leaves at most 27 levels.
    assert np.count_nonzero(made.after) < 30 < np.count_nonzero(made.before)


def test_histogram_of_equal_weights():
    made = histogram("bias", np.zeros(5), np.zeros(5), why="only one")
    assert sum(made.before) == 5


@pytest.mark.parametrize(("before", "after"), [(np.zeros(3), np.zeros(4)), (np.zeros(0), np.zeros(0))])
def test_histogram_needs_weights_of_one_shape(before, after):
    with pytest.raises(InputError, match="conv1"):
        histogram("conv1", before, after, why="x")
