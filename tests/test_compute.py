"""A base station's processor shared by its functions, against Liu and Layland's theorems."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defiance.control.compute import Served, Task, share_processor
from defiance.errors import DefianceError
from defiance.seeding import stream

ORDERS = ("deadline", "rank")


def implicit(name: str, users: int, period_s: float, demand: float) -> Task:
    """A task whose deadline is its period, of a certain share of a processor of 1 operation/s."""
    return Task(name, users, period_s, period_s, demand * period_s / max(users, 1))


def served(tasks: list[Task], order: str, seed: int = 1, duration_s: float = 400.0) -> tuple[Served, ...]:
    return share_processor(tasks, 1.0, duration_s, stream(seed, "processor"), order)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.floats(0.5, 20.0), st.floats(0.01, 1.0)), min_size=1, max_size=4
    ),
    st.integers(0, 100),
)
def test_earliest_deadline_first_misses_nothing_up_to_full_use(
    drawn: list[tuple[int, float, float]], seed: int
) -> None:
    whole = sum(share for _, _, share in drawn) * 1.001
    tasks = [implicit(f"{i}", n, period, share / whole) for i, (n, period, share) in enumerate(drawn)]
    assert all(each.missed == 0 for each in served(tasks, "deadline", seed, 100.0))


def test_ranks_by_period_keep_the_bound_of_liu_and_layland_and_no_more() -> None:
    """n (2^(1/n) - 1) is enough for any periods; at full use two awkward periods miss."""
    below = [
        implicit(f"{i}", 1, period, 3 * (2 ** (1 / 3) - 1) / 3) for i, period in enumerate((2.0, 3.1, 4.7))
    ]
    assert all(each.missed == 0 for each in served(below, "rank"))
    full = [implicit("short", 1, 2.0, 0.5), implicit("long", 1, 3.1, 0.5)]
    assert served(full, "rank")[1].missed > 0
    assert all(each.missed == 0 for each in served(full, "deadline"))


@pytest.mark.parametrize("order", ORDERS)
def test_a_processor_that_is_asked_for_twice_what_it_does_drops_half(order: str) -> None:
    tasks = [implicit("a", 50, 1.0, 1.0), implicit("b", 50, 1.0, 1.0)]
    found = served(tasks, order)
    operations = sum(each.operations for each in found)
    assert operations == pytest.approx(400.0, rel=0.01)  # never idle, never more than there is
    finished = sum(len(each.latency_s) for each in found) / sum(each.jobs for each in found)
    assert finished == pytest.approx(0.5, abs=0.01)


def test_who_has_the_last_rank_yields() -> None:
    first, last = served([implicit("first", 400, 1.0, 0.9), implicit("last", 400, 1.0, 0.9)], "rank")
    assert first.missed == 0
    assert last.operations == pytest.approx(0.1 * 400.0, rel=0.02)  # what the first leaves
    least = 1 - 0.1 / 0.9
    assert least - 0.01 < last.missed / last.jobs < least + 0.05  # of some, what was done is lost


def test_alone_and_unhurried_a_job_takes_its_operations() -> None:
    (found,) = served([Task("one", 1, 10.0, 5.0, 2.0)], "deadline")
    torch.testing.assert_close(found.latency_s, torch.full((found.jobs,), 2.0, dtype=torch.float64))
    assert found.operations == pytest.approx(2.0 * found.jobs)


@pytest.mark.parametrize("order", ORDERS)
def test_nobody_and_nothing(order: str) -> None:
    nobody, nothing = served([Task("nobody", 0, 1.0, 1.0, 5.0), Task("nothing", 3, 1.0, 1.0, 0.0)], order)
    assert (nobody.jobs, nobody.missed) == (0, 0)
    assert nothing.missed == 0
    assert nothing.jobs > 1000
    assert not nothing.latency_s.any()


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(DefianceError, match="task 'csi': .*within the period"):
        Task("csi", 1, 1.0, 2.0, 1.0)
    with pytest.raises(DefianceError, match="processor of 0 operations/s"):
        share_processor([], 0.0, 1.0, stream(1, "x"), "rank")
