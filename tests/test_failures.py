"""What a failure is counted as: by hand on states, and in toy worlds in which it can't be anything else."""

from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from worlds import RADIO, corridor, gain_for_snr, start

from defiance.control.handover import A3
from defiance.errors import DefianceError
from defiance.network.failures import COUNTS, FailureFold
from defiance.network.measurements import Observation
from defiance.network.settings import RadioConfig
from defiance.network.simulate import Outcome, simulate
from defiance.network.state import CONNECTED, NONE, REESTABLISHING, State
from defiance.network.world import World
from defiance.seeding import stream

RECENT, LONG = 10, 500  # steps of stay: 0.2 s and 10 s


def counted(
    *,
    ends_in: int,
    previous: int = NONE,
    stay: int = LONG,
    executing_to: int = NONE,
    refused: bool = False,
    triggered: bool = False,
) -> dict[str, int]:
    """A user of cell 0 fails, two decisions later it is re-established in a cell: what was counted."""

    def cell(value: int) -> Tensor:
        return torch.tensor([[value]], dtype=torch.int32)

    fold = FailureFold(1, 1, RADIO)

    def add(state: State, refused: bool) -> None:
        flags = {"triggered": torch.tensor([[triggered]]), "refused": torch.tensor([[refused]])}
        fold.add(state, **flags, target=cell(executing_to))

    lost = replace(
        start(corridor([[-90.0] * 3] * 2)),
        previous=cell(previous),
        status=cell(REESTABLISHING),
        timer_steps=cell(RADIO.steps(RADIO.reestablishment_s) - 3),
        stay_steps=cell(stay + 3),
    )
    in_handover = executing_to != NONE or refused
    name = "handover_failures" if in_handover else "link_failures"
    lost = replace(lost, **{name: cell(1)})
    add(lost, refused)
    add(replace(lost, timer_steps=lost.timer_steps - 5), False)
    add(replace(lost, status=cell(CONNECTED), serving=cell(ends_in), stay_steps=cell(1)), False)
    return {name: n for name in COUNTS if (n := int(getattr(fold.failures, name)))}


def test_states_of_tr_36839() -> None:
    """Before the event 1, after it or at its command 2, in the execution 3."""
    assert "state_1" in counted(ends_in=1)
    assert "state_2" in counted(ends_in=1, triggered=True)
    assert "state_2" in counted(ends_in=1, refused=True)
    assert "state_3" in counted(ends_in=1, executing_to=1, triggered=True)


@pytest.mark.parametrize(
    ("cause", "failure"),
    [
        ("too_late", {"ends_in": 1}),
        ("too_late", {"ends_in": 1, "previous": 1, "stay": LONG}),  # back, but after a long stay
        ("too_late", {"ends_in": 2, "refused": True}),
        ("same_cell", {"ends_in": 0}),
        ("same_cell", {"ends_in": 0, "previous": 1, "stay": RECENT}),
        ("too_early", {"ends_in": 1, "previous": 1, "stay": RECENT}),
        ("too_early", {"ends_in": 0, "executing_to": 1}),
        ("wrong_cell", {"ends_in": 2, "previous": 1, "stay": RECENT}),
        ("wrong_cell", {"ends_in": 2, "executing_to": 1}),
        ("same_cell", {"ends_in": 1, "executing_to": 1}),
    ],
)
def test_causes_of_ts_38300(cause: str, failure: dict[str, int]) -> None:
    """Clause 15.5.2.2.2; a handover is recent for one second."""
    found = counted(**failure)
    assert found[cause] == 1 and sum(found.values()) == 2  # one state, one cause


@pytest.mark.parametrize(("stay", "cause"), [(50, "too_early"), (51, "too_late")])
def test_a_handover_is_recent_for_the_time_of_stay(stay: int, cause: str) -> None:
    """1 s of 20 ms steps, however long the re-establishment takes."""
    assert counted(ends_in=1, previous=1, stay=stay)[cause] == 1


# --- toy worlds ---


@dataclass(frozen=True)
class Course:
    """Wants these cells, one per decision, then stays."""

    cells: tuple[int, ...]
    period_steps: int = 5
    placement: Literal["device", "station"] = "device"

    def initial(self, worlds: int, users: int, cells: int) -> int:
        return 0

    def decide(self, memory: int, observation: Observation) -> tuple[int, Tensor]:
        wanted = self.cells[memory] if memory < len(self.cells) else NONE
        return memory + 1, torch.full_like(observation.serving, wanted).long()


def outcome_of(world: World, policy: object, config: RadioConfig = RADIO, duration_s: float = 4.0) -> Outcome:
    return simulate(world, config, policy, stream(1, "m"), duration_s=duration_s, warm_up_s=0.0)


def totals(outcome: Outcome) -> dict[str, int]:
    return {name: n for name in COUNTS if (n := int(getattr(outcome.failures, name).sum()))}


def fading_out(second_db: float) -> World:
    """At 40 m/s away from cell 0, 30 dB in 40 m, with another cell at a constant SNR."""
    places = 30
    return corridor(
        [[gain_for_snr(20.0 - 7.5 * min(place, 8)), gain_for_snr(second_db)] for place in range(places)],
        speed_mps=40.0,
    )


def test_who_never_hands_over_fails_too_late_and_before_the_event() -> None:
    assert totals(outcome_of(fading_out(10.0), Course(()))) == {"state_1": 1, "too_late": 1}


def test_who_hands_over_too_slowly_fails_after_the_event() -> None:
    slow = A3(1.0, 0.0, 5.0, 0.0)
    assert totals(outcome_of(fading_out(10.0), slow)) == {"state_2": 1, "too_late": 1}


def test_who_is_sent_into_a_hole_fails_in_the_execution_and_comes_back() -> None:
    world = corridor([[gain_for_snr(20.0), gain_for_snr(-20.0)]] * 2)
    assert totals(outcome_of(world, Course((1,)))) == {"state_3": 1, "too_early": 1}


def test_who_is_handed_over_too_early_comes_back() -> None:
    """Cell 1 carries the execution, and fails within a second after it."""
    world = corridor(
        [[gain_for_snr(20.0), gain_for_snr(10.0 - 12.5 * place)] for place in range(30)], speed_mps=40.0
    )
    config = replace(RADIO, t310_s=0.1)
    assert totals(outcome_of(world, Course((1,)), config, 2.0)) == {"state_1": 1, "too_early": 1}


def test_a_command_fails_while_t310_runs() -> None:
    """TR 36.839 clause 5.2.1.3: cell 0 at -10 dB starts T310 after 200 ms; the command comes 150 ms later."""
    world = corridor([[gain_for_snr(-10.0), gain_for_snr(-11.0)]] * 2)
    ideal = replace(RADIO, messages="t310", t310_s=2.0, suitable_dbm=-200.0)
    early, late = (
        outcome_of(world, Course((1,)), ideal, 0.6),
        outcome_of(world, Course((NONE,) * 3 + (1,)), ideal, 2),
    )
    assert early.state.handover_failures.sum() + late.state.handover_failures.sum() == 2
    assert totals(late) == {"state_2": 1, "same_cell": 1}
    assert late.lost.sum() == 0  # nothing but T310 loses a message
    good = corridor([[gain_for_snr(10.0), gain_for_snr(10.0)]] * 2)
    assert outcome_of(good, Course((1,)), ideal).state.handovers.sum() == 1


def test_states_add_up_to_failures() -> None:
    """Every link and handover failure has one state; every re-established one has one cause."""
    world = corridor(
        [[gain_for_snr(8.0 * ((place + 2 * cell) % 5) - 16.0) for cell in range(3)] for place in range(60)],
        users=1,
        speed_mps=25.0,
    )
    outcome = outcome_of(world, A3(1.0, 0.0, 0.0, 0.0), replace(RADIO, t310_s=0.1), 20.0)
    found = totals(outcome)
    failed = int((outcome.state.link_failures + outcome.state.handover_failures).sum())
    assert failed > 3
    assert sum(n for name, n in found.items() if name.startswith("state")) == failed
    causes = sum(n for name, n in found.items() if not name.startswith("state"))
    assert causes == failed - int(outcome.state.status.item() == REESTABLISHING)


def test_counting_starts_after_the_warm_up() -> None:
    warm = simulate(fading_out(10.0), RADIO, Course(()), stream(1, "m"), duration_s=2.0, warm_up_s=4.0)
    assert totals(warm) == {}


def test_a_short_reestablishment_is_refused() -> None:
    with pytest.raises(DefianceError, match="reestablishment_s is 0.05 s"):
        outcome_of(fading_out(10.0), Course(()), replace(RADIO, reestablishment_s=0.05))
