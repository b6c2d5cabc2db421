"""`ordered_map`: the order of `map`, bounded reading ahead, and nothing left behind."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.data.stream import ordered_map


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 4), st.integers(1, 6))
def test_results_come_in_order(delays, workers, ahead):
    def work(delay: int) -> int:
        time.sleep(delay / 2000)
        return delay * 10

    assert list(ordered_map(work, delays, workers, ahead)) == [delay * 10 for delay in delays]


def test_at_most_so_many_items_are_taken_ahead():
    taken: list[int] = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    results = ordered_map(lambda i: i, items(), ahead=4)
    assert not taken  # nothing starts before the first result is asked for
    for i in range(46):
        assert next(results) == i
        assert len(taken) == i + 1 + 4  # what was yielded, and four more
    assert list(results) == [46, 47, 48, 49]


def test_work_runs_beside_the_consumer():
    both = threading.Barrier(2, timeout=10)  # passes only if two items are worked on at once
    assert list(ordered_map(lambda _: both.wait() >= 0, [1, 2], workers=2)) == [True, True]


def test_an_error_arrives_in_its_place_and_ends_the_work():
    done: list[int] = []

    def work(i: int) -> int:
        if i == 3:
            raise ValueError("the fourth")
        done.append(i)
        time.sleep(0.01)
        return i

    results = ordered_map(work, range(100), workers=1, ahead=10)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)
    time.sleep(0.1)
    assert len(done) < 13  # those behind were cancelled or never begun


def test_an_error_of_the_source_arrives_too():
    def items():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(ordered_map(lambda i: i, items(), ahead=1))


def test_a_consumer_that_stops_leaves_no_work():
    before = threading.active_count()
    done: list[int] = []
    results = ordered_map(lambda i: (time.sleep(0.005), done.append(i)), range(1000), ahead=100)
    next(results)
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before and len(done) < 20
