"""What the air delivers in the engine: NR's link adaptation against the standard's peak rate and a genie."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from worlds import corridor, gain_for_snr, start

from defiance.config import build
from defiance.errors import DefianceError
from defiance.network import kernel, reference
from defiance.network.measurements import measure
from defiance.network.rates import offered_rates, transport_blocks
from defiance.network.settings import DATA_SYMBOLS, SLOTS_PER_S, RadioConfig
from defiance.network.state import NONE, State
from defiance.network.world import World, directions, phases
from defiance.radio.link_adaptation import BLER_TARGET, OLLA_UP_DB, lookup
from defiance.radio.link_quality import eesm

Step = Callable[..., State]
both = pytest.mark.parametrize("step", [kernel.step, reference.step], ids=["kernel", "reference"])
ELEMENTS = DATA_SYMBOLS * RadioConfig().resource_elements
QAM64, QAM256 = RadioConfig(link_adaptation="qam64"), RadioConfig(link_adaptation="qam256")


def cell_with(snr_db: float, config: RadioConfig = QAM256, **kwargs) -> World:
    """One cell; full buffers; no fading."""
    return corridor([[gain_for_snr(snr_db, config)]] * 2, demand_bps=1e9, **kwargs)


def fading_cell(snr_db: float, users: int, speed_mps: float) -> World:
    """The same with Rayleigh fading, independent for every user."""
    world = cell_with(snr_db, users=users, speed_mps=speed_mps)
    rng = torch.Generator().manual_seed(1)
    angle = (torch.arange(8) + torch.rand(1, users, 1, 1, generator=rng)) / 8
    phase = torch.rand(1, users, 1, 8, generator=rng)
    return replace(world, fading_direction=directions(angle), fading_phase=phases(phase))


@both
@pytest.mark.parametrize(("config", "order", "rate"), [(QAM64, 6, 948), (QAM256, 8, 948)])
def test_peak_rate_is_the_standards(step: Step, config: RadioConfig, order: int, rate: int) -> None:
    """TS 38.306 clause 4.1.2: order x rate/1024 x 51 x 12/(1e-3/28) x (1 - 0.14) bit/s, within 1 %."""
    world = cell_with(45.0, config)
    state = step(world, start(world, config=config), config)
    peak_bps = order * rate / 1024 * 51 * 12 * 28_000 * (1 - 0.14)
    later = step(world, state, config, 10)
    assert (later.bits - state.bits).item() / 0.2 == pytest.approx(peak_bps, rel=0.01)


@pytest.mark.parametrize(("bandwidth_mhz", "blocks"), [(5, 11), (20, 51), (100, 273)])
def test_a_carrier_has_the_standards_resource_blocks(bandwidth_mhz: int, blocks: int) -> None:
    """TS 38.101-1 table 5.3.2-1 at 30 kHz; rates and RSRP follow."""
    config = replace(QAM256, bandwidth_hz=bandwidth_mhz * 1e6)
    assert config.resource_elements == 12 * blocks
    world = cell_with(45.0, config)
    state = reference.step(world, start(world, config=config), config, 10)
    later = reference.step(world, state, config, 5)
    peak_bps = 8 * 948 / 1024 * blocks * 12 * 28_000 * (1 - 0.14)
    assert (later.bits - state.bits).item() / 0.1 == pytest.approx(peak_bps, rel=0.015)
    rsrp_dbm = config.noise_dbm + 45.0 - 10 * math.log10(12 * blocks)
    assert measure(later, config).rsrp_dbm.item() == pytest.approx(rsrp_dbm, abs=1e-3)


def test_a_carrier_that_nr_does_not_have_is_refused() -> None:
    with pytest.raises(DefianceError, match=r"5, 10, 15, 20, .* 90, 100 MHz"):
        build(RadioConfig, overrides=["bandwidth_hz=22e6"])


def test_rates_lie_around_the_attenuated_shannon_rate() -> None:
    """From 0 to 20 dB, an ideal link has 0.65 to 1.05 of attenuated Shannon: its steps are coarse."""
    for snr_db in (0.0, 5.0, 10.0, 15.0, 20.0):
        world = cell_with(snr_db)
        state = kernel.step(world, start(world, config=QAM256), QAM256)
        rate_bps = (kernel.step(world, state, QAM256, 50).bits - state.bits).item()
        shannon_bps = 0.6 * torch.log2(torch.tensor(1 + 10 ** (snr_db / 10))).item() * 20e6
        assert 0.65 < rate_bps / shannon_bps < 1.05, snr_db


@pytest.mark.parametrize("speed_mps", [0.0, 15.0])
def test_one_block_in_ten_is_lost_at_any_speed(speed_mps: float) -> None:
    """Slow users' reports are nearly right, fast ones' worthless; the outer loop backs off as it must."""
    world = fading_cell(12.0, 300, speed_mps)
    state = kernel.step(world, start(world, config=QAM256), QAM256, 100)
    errors = []
    for _ in range(300):
        before, state = state, kernel.step(world, state, QAM256)
        moved = state.olla_db - before.olla_db
        errors.append(BLER_TARGET + moved * (1 - BLER_TARGET) / OLLA_UP_DB)
    error = torch.stack(errors)
    assert -1e-4 <= error.min() and error.max() <= 1 + 1e-4
    assert error.mean().item() == pytest.approx(BLER_TARGET, abs=0.01)
    low_db, high_db = (4.0, 12.0) if speed_mps else (0.0, 4.0)
    assert low_db < state.olla_db.mean() < high_db


def test_slow_users_get_nearly_what_a_genie_would_choose() -> None:
    """The best index for the present SINR against the one for the SINR 5 ms ago, at 0.83 m/s: 70 %."""
    world = fading_cell(12.0, 300, 0.0)
    table = lookup("qam256", ELEMENTS)
    state = kernel.step(world, start(world, config=QAM256), QAM256, 50)
    genie_bits, got = 0.0, -state.bits.sum().item()
    index = torch.arange(len(table.required_db))[:, None].expand(-1, 300)
    for _ in range(50):
        slot = int(state.ring)
        state = kernel.step(world, state, QAM256)
        sinr = (state.signal_mw / state.interference_mw)[0, :, slot]
        best = table.at(index, sinr.expand(index.shape).double())[1].amax(0)
        genie_bits += best.sum().item() / 300 * SLOTS_PER_S * ELEMENTS * QAM256.step_s
    got += state.bits.sum().item()
    assert 0.7 < got / genie_bits <= 1


@both
def test_what_a_cell_has_learnt_of_a_user_starts_anew_in_another(step: Step) -> None:
    """The outer loop's offset and proportional fairness' mean."""
    world = corridor([[gain_for_snr(15.0), gain_for_snr(14.0)]] * 2, demand_bps=1e9)
    config = replace(QAM64, execution_s=0.02, scheduler="proportional_fair")
    state = step(world, start(world, config=config), config, 4)
    assert abs(state.olla_db.item()) > 0.01 and state.average_bps.item() > 0
    state = replace(state, target=torch.ones_like(state.target), command_steps=0 * state.target)
    state = step(world, state, config)
    assert state.serving.item() == 1 and state.target.item() == NONE
    assert state.olla_db.item() == state.average_bps.item() == 0


@both
@pytest.mark.parametrize(("snr_db", "demand_bps"), [(10.0, 0.0), (-20.0, 1e9), (60.0, 1e9)])
def test_the_outer_loop_rests_without_blocks_and_where_the_table_ends(
    step: Step, snr_db: float, demand_bps: float
) -> None:
    """Else it would wind up by 20 dB, which takes 180 steps without an error to undo."""
    world = corridor([[gain_for_snr(snr_db)]] * 2, demand_bps=demand_bps)
    state = step(world, start(world), QAM64, 30)
    assert state.olla_db.item() == pytest.approx(0, abs=1e-6)


@both
def test_the_outer_loop_moves_by_the_blocks_that_are_sent(step: Step) -> None:
    """Of two users, only the one that max rate serves: 20 dB against 10 dB, where both would move alone."""
    config = replace(QAM256, scheduler="max_rate")
    gain = gain_for_snr(20.0)
    world = corridor([[gain]] * 2, users=2, demand_bps=1e9)
    world = replace(world, loss_db=torch.tensor([[0.0, 10.0]]))
    state = step(world, start(world), config, 3)
    assert state.olla_db[0, 0] != 0 and state.olla_db[0, 1] == 0


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(DefianceError, match="link_adaptation"):
        build(RadioConfig, overrides=["link_adaptation=qam1024"])


def test_one_block_has_one_mcs_for_the_effective_sinr_of_its_sub_bands() -> None:
    """TS 38.214 clause 5.1.3: over 6 and 15 dB as much as over a flat carrier of the EESM's SINR.

    A sub-band in which nothing was given doesn't count.
    """
    state = start(corridor([[-90.0]] * 2), config=QAM256)

    def sent(sinr: list[float], share: list[float]) -> float:
        told = torch.tensor([[sinr]])
        return transport_blocks(state.olla_db, QAM256, torch.tensor([[share]]), told, told)[0].item()

    sinr, table = torch.tensor([4.0, 32.0], dtype=torch.float64), lookup("qam256", ELEMENTS)
    effective = sinr.mean()
    for _ in range(20):
        effective = eesm(sinr, table.beta(table.fractional_mcs(10 * torch.log10(effective))))
    block_bps = sent([4.0, 32.0, 1e4], [0.5, 0.5, 0.0])
    assert block_bps == pytest.approx(sent([effective.item()], [1.0]), rel=0.02)
    assert sent([1.0, 100.0], [0.5, 0.5]) < 0.7 * (sent([1.0], [0.5]) + sent([100.0], [0.5]))


@pytest.mark.parametrize("snr_db", [5.0, 15.0])
def test_one_mcs_costs_a_user_alone_little(snr_db: float) -> None:
    """A user alone on 16 sub-bands of Rayleigh fading: 85 to 100 % of what an MCS in each would carry."""
    rng = torch.Generator().manual_seed(1)
    sinr = 10 ** (snr_db / 10) * torch.empty(1, 200, 16).exponential_(generator=rng)
    state = start(corridor([[-90.0]] * 2, users=200), config=QAM256)
    share = torch.full((1, 200, 16), 1 / 16)
    one, _ = transport_blocks(state.olla_db, QAM256, share, sinr, sinr)
    each, _ = offered_rates(state.olla_db, QAM256, sinr, sinr)
    each = each.clamp(min=0).mean(-1)
    assert 0.85 < one.mean() / each.mean() < 1.0
