"""The choice: limits, preferences, ties; and what is saved where nothing meets the limits."""

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fewbits.choose import PREFERENCES, TIE, Choice, Limits, Measured, choose, parse_drop, parse_size
from fewbits.errors import InputError

ORIGINAL = Measured("original", 1000, 4.0, 1.0, 0.0)


def one(name, size=300, latency=2.0, drop=0.5, error=None, speedup=...):
    """A candidate; its speedup is against the original's 4 ms."""
    if speedup is ...:
        speedup = None if latency is None else 4.0 / latency
    return Measured(name, size, latency, speedup, drop, error)


def chosen(*candidates, prefer="speed", **limits):
    return choose([ORIGINAL, *candidates], Limits(**limits), prefer, " points")


# --- preferences and ties ---------------------------------------------------------------------------------------


def test_each_preference_takes_its_own_best():
    fast, small, good = one("fast", 500, 1.0, 0.9), one("small", 100, 3.0, 0.8), one("good", 400, 2.0, -0.1)
    assert chosen(fast, small, good, prefer="speed").chosen == "fast"
    assert chosen(fast, small, good, prefer="size").chosen == "small"
    assert chosen(fast, small, good, prefer="quality").chosen == "good"


def test_within_three_percent_of_the_fastest_the_smallest_file_wins():
    assert chosen(one("fast", 500, 1.0), one("close", 100, 1.029)).chosen == "close"
    assert chosen(one("fast", 500, 1.0), one("behind", 100, 1.031)).chosen == "fast"


def test_ties_are_with_the_best_and_not_with_each_other():
    """2.9 % and 5.8 % behind: the third ties with the second, and is out all the same."""
    assert chosen(one("a", 500, 1.0), one("b", 400, 1.029), one("c", 100, 1.058)).chosen == "b"


def test_among_the_fastest_a_hair_of_size_decides_nothing():
    assert chosen(one("a", 401, 1.0), one("b", 400, 1.02)).chosen == "a"


def test_within_three_percent_of_the_smallest_the_faster_wins():
    assert chosen(one("small", 100, 2.0), one("close", 103, 1.0), prefer="size").chosen == "close"
    assert chosen(one("small", 100, 2.0), one("larger", 104, 1.0), prefer="size").chosen == "small"


def test_equal_quality_goes_to_the_smaller():
    assert chosen(one("a", 200, 2.0, -1.0), one("b", 100, 3.0, -1.0), prefer="quality").chosen == "b"


def test_the_original_is_a_candidate():
    """Where nothing gains anything, the file is to be kept as it is."""
    slower = [one("a", 900, 4.5), one("b", 980, 5.0)]
    for prefer in PREFERENCES:
        assert chosen(ORIGINAL, prefer=prefer).chosen == "original"
    assert chosen(*slower, prefer="speed").chosen == "original"
    assert chosen(*slower, prefer="quality").chosen == "original"


@pytest.mark.parametrize("latency", [4.13, 5.0, 40.0])
@pytest.mark.parametrize("size", [1, 999])
def test_nothing_slower_than_the_fastest_original_is_chosen_for_speed(size, latency):
    bf16 = Measured("original bf16", 1000, 3.9, 4 / 3.9, 0.0)
    assert chosen(bf16, one("slower", size, latency, 0.0)).chosen != "slower"


# --- limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_drop": 0.4}, "drop 0.5 points is over 0.4 points"),
        ({"max_bytes": 299}, "size 0.00 MB is over 0.00 MB"),
        ({"min_speedup": 2.5}, "speedup 2.00x is under 2.5x"),
    ],
)
def test_a_limit_that_fails_is_named_with_the_distance(limits, said):
    choice = chosen(one("a"), **limits)
    assert choice.failed["a"] == (said,)


@pytest.mark.parametrize("limits", [{"max_drop": 0.5}, {"max_bytes": 300}, {"min_speedup": 2.0}])
def test_a_limit_that_is_just_met_is_met(limits):
    choice = chosen(one("a"), **limits)
    assert choice.failed["a"] == ()
    assert choice.chosen == "a"


def test_sizes_are_told_apart_in_words():
    choice = chosen(one("a", 25_400_000), max_bytes=20_000_000)
    assert choice.failed["a"] == ("size 25.40 MB is over 20.00 MB",)


def test_every_limit_that_fails_is_named():
    choice = chosen(one("a", latency=None), max_drop=0.1, max_bytes=1, min_speedup=9)
    assert len(choice.failed["a"]) == 3
    assert "speedup unknown is under 9x" in choice.failed["a"]


def test_what_fails_a_limit_is_not_chosen_however_good_it_is():
    choice = chosen(one("fast", 500, 0.1, drop=5.0), one("slow", 500, 3.0, drop=0.5), max_drop=1.0)
    assert choice.chosen == choice.saved == "slow"


def test_a_gain_is_no_drop():
    assert chosen(one("a", drop=-3.0), max_drop=0.0).chosen == "a"


# --- what cannot be chosen --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_what_is_shown_only_is_never_chosen_nor_saved(prefer):
    best = dataclasses.replace(one("framework", 1, 0.1, -5.0), shown_only=True)
    assert chosen(best, prefer=prefer).chosen == "original"
    assert chosen(best, one("a"), prefer=prefer, max_bytes=1).saved != "framework"
    assert chosen(best).failed["framework"] == ()
    assert choose([best], Limits(), prefer, "") == Choice(None, None, {"framework": ()})


@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize("bad", [{"drop": None}, {"error": "cannot compile"}, {"latency": None}])
def test_what_is_not_scored_measured_or_right_is_never_chosen_nor_saved(bad, prefer):
    best = one("bad", 1, **({"latency": 0.01, "drop": -50.0} | bad))
    assert chosen(best, one("a"), prefer=prefer).chosen != "bad"
    alone = choose([best], Limits(), prefer, "")
    assert (alone.chosen, alone.saved) == (None, None)
    nothing_meets = chosen(best, one("a"), prefer=prefer, max_bytes=0)
    assert nothing_meets.saved in ("a", "original")


def test_an_unscored_candidate_says_so_and_one_with_an_error_fails_no_limit():
    choice = chosen(one("unscored", drop=None), one("broken", drop=None, error="no kernel"), max_bytes=1)
    assert "its score could not be computed" in choice.failed["unscored"]
    assert choice.failed["broken"] == ()


# --- nothing meets the limits -----------------------------------------------------------------------------------


def test_the_nearest_to_the_limits_is_saved_with_what_it_fails():
    near, far = one("near", 320, 2.0, drop=1.2), one("far", 310, 1.0, drop=3.0)
    choice = chosen(near, far, max_drop=1.0, max_bytes=330, min_speedup=1.5)
    assert (choice.chosen, choice.saved) == (None, "near")
    assert choice.failed["near"] == ("drop 1.2 points is over 1 points",)
    assert choice.failed["original"]


def test_distances_of_several_limits_add_up():
    """A tenth over the size and twice too slow is further off than half over the size alone."""
    a, b = one("a", 110, 4.0, 0.0), one("b", 150, 2.0, 0.0)
    assert choose([a, b], Limits(max_bytes=100, min_speedup=2.0), "speed", "").saved == "b"


def test_equally_near_goes_to_the_smaller_drop():
    a, b = one("a", 150, drop=0.9), one("b", 150, drop=0.1)
    assert choose([a, b], Limits(max_drop=1.0, max_bytes=100), "speed", "").saved == "b"


def test_limits_of_zero_are_no_division():
    choice = chosen(one("a", drop=0.1), max_drop=0.0, max_bytes=0, min_speedup=0.0)
    assert choice.chosen is None
    assert choice.saved is not None


# --- whatever the numbers ---------------------------------------------------------------------------------------

NUMBERS = st.floats(0.01, 100)
CANDIDATES = st.lists(
    st.builds(
        one,
        st.uuids().map(str),
        st.integers(1, 2000),
        st.none() | NUMBERS,
        st.none() | st.floats(-5, 5),
        st.sampled_from([None, None, None, "broken"]),
    ),
    min_size=1,
    unique_by=lambda c: c.name,
)
LIMITS = st.builds(
    Limits, st.none() | st.floats(0, 5), st.none() | st.integers(0, 2000), st.none() | st.floats(0, 10)
)


def meets(c, limits):
    return (
        c.error is None
        and c.drop is not None
        and c.latency_ms is not None
        and (limits.max_drop is None or c.drop <= limits.max_drop)
        and (limits.max_bytes is None or c.size_bytes <= limits.max_bytes)
        and (limits.min_speedup is None or c.speedup >= limits.min_speedup)
    )


@settings(deadline=None)
@given(CANDIDATES, LIMITS, st.sampled_from(PREFERENCES))
def test_the_chosen_one_meets_the_limits_and_nothing_beats_it_by_more_than_a_tie(candidates, limits, prefer):
    choice = choose(candidates, limits, prefer, "")
    meeting = [c for c in candidates if meets(c, limits)]
    by_name = {c.name: c for c in candidates}
    assert set(choice.failed) == set(by_name)
    if not meeting:
        assert choice.chosen is None
        able = [c for c in candidates if c.error is None and c.drop is not None and c.latency_ms is not None]
        assert (choice.saved is None) == (not able)
        assert choice.saved is None or (by_name[choice.saved] in able and choice.failed[choice.saved])
        return
    assert choice.saved == choice.chosen
    best = by_name[choice.chosen]
    assert best in meeting
    for other in meeting:
        if prefer == "speed":
            assert best.latency_ms <= other.latency_ms * TIE
            assert other.latency_ms > best.latency_ms or other.size_bytes * TIE >= best.size_bytes
        elif prefer == "size":
            assert best.size_bytes <= other.size_bytes * TIE
            assert other.size_bytes > best.size_bytes or other.latency_ms >= best.latency_ms
        else:
            assert best.drop <= other.drop


@settings(deadline=None)
@given(CANDIDATES, LIMITS, st.sampled_from(PREFERENCES), st.randoms())
def test_the_order_of_candidates_decides_nothing_but_perfect_ties(candidates, limits, prefer, random):
    values = [(c.size_bytes, c.latency_ms, c.drop) for c in candidates]
    assume(len(set(values)) == len(values))
    shuffled = list(candidates)
    random.shuffle(shuffled)
    one_way, other = choose(candidates, limits, prefer, ""), choose(shuffled, limits, prefer, "")
    assert one_way.chosen == other.chosen
    assert one_way.failed == other.failed


def test_nothing_is_changed_by_choosing():
    candidates = [one("a"), one("b", drop=None)]
    before = [dataclasses.replace(c) for c in candidates]
    choose(candidates, Limits(1.0, 100, 2.0), "speed", "")
    assert candidates == before


# --- limits as they are written ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "original", "points"),
    [
        ("1%", 90.0, 0.9),
        ("1%", -90.0, 0.9),
        ("0.5", 90.0, 0.5),
        (0.5, 90.0, 0.5),
        ("0", 1.0, 0.0),
        (" 2 % ", 50, 1.0),
    ],
)
def test_drops_as_written(written, original, points):
    assert parse_drop(written, lambda share: share * abs(original)) == pytest.approx(points)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (None, None),
        ("25%", 250),
        ("20MB", 20_000_000),
        ("1.5 MiB", 1_572_864),
        ("3kb", 3000),
        ("2GB", 2_000_000_000),
        ("77", 77),
        (77, 77),
        ("9B", 9),
        ("0%", 0),
    ],
)
def test_sizes_as_written(written, size):
    assert parse_size(written, 1000) == size


@pytest.mark.parametrize(
    "written", ["", "big", "20XB", "-3MB", "1.2.3MB", "nan", "inf", "-1%", ".MB", "%", "1e400"]
)
def test_sizes_that_are_none(written):
    with pytest.raises(InputError, match="max_size"):
        parse_size(written, 1000)
