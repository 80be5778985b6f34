"""The network's step as one tensor program: the reference, for any device.

Everything a user or a cell does in `RadioConfig.step_s` seconds stands here once, batch first `[W, U, C]`;
`kernel.step` is the same function as a fused CPU loop.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from defiance.network.rates import offered_rates, transport_blocks
from defiance.network.scheduling import LEAST_MEAN_BPS, LEAST_SHARE, band_phasors, shares
from defiance.network.settings import FADING_SHARE, SPEED_OF_LIGHT_MPS, RadioConfig
from defiance.network.state import CONNECTED, EXECUTING, NONE, REESTABLISHING, State, but, reestablish
from defiance.network.traffic import arrive, depart
from defiance.network.world import TRAVELLED_PER_TURN, World
from defiance.radio.link_adaptation import olla_step
from defiance.scene.streets import ROUTE_SPACING_M


def step(world: World, state: State, config: RadioConfig, steps: int = 1) -> State:
    """Advances all worlds by `steps` steps of `config.step_s`.

    Pure: draws live in `world`, so two calls with the same arguments return the same state. Order within a
    step: movement, received powers, handover procedures, radio-link monitoring, scheduling. The load that
    interferes is that of the step before.

    Args:
        world: constants, `[W, U, ...]`.
        state: see `State`; `target` and `command_steps` carry the handover commands.
        config: the carrier and the procedures' timers.
        steps: how many steps.
    """
    for _ in range(steps):
        state = _step(world, state, config)
    return state


def command(state: State, told: Tensor, wait_steps: int, config: RadioConfig) -> tuple[State, Tensor]:
    """Handover commands arrive between two steps; with `messages = "t310"` late ones fail the handover.

    That is the criterion of TR 36.839 clause 5.2.1.3: a command that comes while T310 runs.

    Args:
        state: between the steps.
        told: cell that a user's command names, `[W, U]`; NONE without one.
        wait_steps: until it is executed.
        config: the procedures.

    Returns:
        The state, and whose command came too late, `[W, U]`.
    """
    commanded = told != NONE
    state = but(
        state,
        target=torch.where(commanded, told, state.target).int(),
        command_steps=torch.where(commanded, wait_steps, state.command_steps).int(),
    )
    late = (state.status == CONNECTED) & (state.target != NONE) & (state.t310_steps != NONE)
    refused = late & (config.messages == "t310")
    state = reestablish(state, refused, config)
    return but(state, handover_failures=state.handover_failures + refused.int()), refused


def position_m(world: World, travelled_m: Tensor) -> Tensor:
    """Position at a distance along the route, `[W, U] -> [W, U, 2]` float64."""
    points = world.route_m.shape[2]
    along = (travelled_m / ROUTE_SPACING_M).clamp(max=points - 1.000001)
    point = along.long()
    part = (along - point)[..., None]
    index = point[..., None, None].expand(*point.shape, 1, 2)
    start = world.route_m.gather(2, index).squeeze(2).double()
    end = world.route_m.gather(2, index + 1).squeeze(2).double()
    return start * (1 - part) + end * part


def map_gain_db(world: World, position: Tensor, floor: Tensor) -> Tensor:
    """Path gain at positions `[..., 2]` on floors `[...]`, bilinear in dB, `[..., C]`."""
    return _look_up(world.gain_db, world, position, floor)


def rice_factor(world: World, position: Tensor) -> Tensor | None:
    """Linear K of every link with the users at positions `[W, U, 2]`, `[W, U, C]`; None: Rayleigh."""
    return _look_up(world.rice_factor, world, position, world.floor) if world.rice_factor.numel() else None


def _look_up(grid: Tensor, world: World, position: Tensor, floor: Tensor) -> Tensor:
    offset = position.double() - torch.tensor(world.origin_m, dtype=torch.float64, device=position.device)
    _, rows, columns, _ = grid.shape
    if world.lattice_m is None:
        column = (offset[..., 0] / world.resolution_m).clamp(0, columns - 1.000001)
        row = (offset[..., 1] / world.resolution_m).clamp(0, rows - 1.000001)
    else:
        along = offset @ torch.linalg.inv(world.lattice_m)
        column, row = ((along - along.floor()) * along.new_tensor([columns, rows])).unbind(-1)
    i, j = row.long().clamp(max=rows - 1), column.long().clamp(max=columns - 1)
    up, right = (i + 1) % rows, (j + 1) % columns
    fy, fx = (row - i).float()[..., None], (column - j).float()[..., None]
    floor = floor.long()
    return (
        (1 - fy) * (1 - fx) * grid[floor, i, j]
        + (1 - fy) * fx * grid[floor, i, right]
        + fy * (1 - fx) * grid[floor, up, j]
        + fy * fx * grid[floor, up, right]
    )


def path_gain_db(world: World, position: Tensor) -> Tensor:
    """Path gain of every link with the users at positions `[W, U, 2]`, `[W, U, C]`."""
    return map_gain_db(world, position, world.floor) - world.loss_db[..., None]


def rays(world: World, fading_turns: Tensor, rice: Tensor | None = None) -> Tensor:
    """Rays of every link, `[W, U, C, N]` complex64; their sum h has E|h|^2 = 1.

    Jakes' spectrum with one scatterer per sector of angles and a random offset per link, so that the
    ensemble's autocorrelation J0(2 pi d / lambda) is exact for any number of scatterers (Clarke 1968; Zheng
    and Xiao 2003). A specular ray makes the link Rician; its direction is random, too (Xiao, Zheng and
    Beaulieu 2006). A function of the distance alone: no policy can change a draw.

    Args:
        world: directions and phases, `[W, U, C, N]`.
        fading_turns: wavelengths travelled, `[W, U]` float64.
        rice: K of every link, linear, `[W, U, C]`, if the last ray is specular.
    """
    travelled = (fading_turns * TRAVELLED_PER_TURN).long()[..., None, None]
    phase = travelled * world.fading_direction + world.fading_phase.long() * 2**16
    angle = (2 * math.pi / 2**32 * (phase & (2**32 - 1))).float()
    ray = torch.polar(torch.ones_like(angle), angle)
    if rice is None:
        return ray / math.sqrt(ray.shape[-1])
    scatterers = ray.shape[-1] - 1
    rice = rice[..., None]
    power = torch.cat([torch.full_like(ray[..., 1:].real, 1 / scatterers), rice], -1) / (1 + rice)
    return ray * power.sqrt()


def fading_power(world: World, fading_turns: Tensor, rice: Tensor | None = None) -> Tensor:
    """|h|^2 of every link, mean 1, `[W, U, C]`; see `rays`."""
    return rays(world, fading_turns, rice).sum(-1).abs().square()


def fades(mean_mw: Tensor, config: RadioConfig) -> Tensor:
    """Which links fade, `[W, U, C]`; the others are received with their mean power, because nobody can tell.

    These are below `FADING_SHARE` of the noise and the mean of all cells but the strongest, and
    `FADING_MARGIN_DB` below the weakest RSRP that is measured. With interfering powers m_c, disturbance
    I = noise + sum m_c and var |h|^2 <= 1, what the disturbance lacks has a variance of sum m_c^2 <=
    FADING_SHARE I^2 at most: 0.24 dB of standard deviation if all of it came from cells at the threshold, no
    bias. Places alone decide, so no policy can change it; the strongest cell always fades.

    Args:
        mean_mw: mean received power, `[W, U, C]`.
        config: noise and floor.
    """
    strongest_mw = mean_mw.amax(-1, keepdim=True)
    others_mw = mean_mw.sum(-1, keepdim=True) - strongest_mw + 10 ** (config.noise_dbm / 10)
    least_mw = torch.minimum((FADING_SHARE * others_mw).clamp(max=config.unheard_mw), strongest_mw)
    return mean_mw >= least_mw


def _step(world: World, state: State, config: RadioConfig) -> State:
    dt = config.step_s
    # movement
    moving = state.stopped_s <= 0
    speed = torch.where(moving, world.speed_mps, 0.0).double()
    travelled = state.travelled_m + speed * dt
    arrived = torch.floor(travelled / world.stop_spacing_m) > torch.floor(
        state.travelled_m / world.stop_spacing_m
    )
    stopped = torch.where(moving, torch.where(arrived, world.stop_s, state.stopped_s), state.stopped_s - dt)
    waves_per_m = world.carrier_hz / SPEED_OF_LIGHT_MPS
    fading_turns = state.fading_turns + speed.clamp(min=config.environment_mps) * dt * waves_per_m

    # received power of every cell, [W, U, C]
    position = position_m(world, travelled)
    mean_mw = torch.pow(10.0, (path_gain_db(world, position) + config.tx_power_dbm) / 10)
    rice = rice_factor(world, position)
    ray = rays(world, fading_turns, rice)
    phasors = band_phasors(ray.shape[-1], rice is not None, world.delay_spread_s, config).to(ray.device)
    power = (ray @ phasors.T).abs().square().mean(-1)  # of what is measured and what interferes: the carrier
    received = torch.where(fades(mean_mw, config), mean_mw * power, mean_mw).float()
    total = (state.load[:, None] * received).sum(-1)

    # commands that arrive start the execution; the ring restarts and follows the target
    starts = (state.status == CONNECTED) & (state.target != NONE) & (state.command_steps <= 0)
    waiting = (state.status == CONNECTED) & (state.target != NONE) & ~starts
    status = torch.where(starts, EXECUTING, state.status)
    timer = torch.where(starts, max(1, config.steps(config.execution_s)), state.timer_steps)
    window = torch.where(starts, 0, state.window_steps)
    stay = state.stay_steps + 1
    executing, reestablishing, connected = status == EXECUTING, status == REESTABLISHING, status == CONNECTED
    timer = torch.where(executing | reestablishing, timer - 1, timer)

    # the ring of radio-link monitoring
    cell = torch.where(executing, state.target, state.serving).long()
    signal = received.gather(-1, cell[..., None]).squeeze(-1)
    own_load = state.load[:, None].expand_as(received).gather(-1, cell[..., None]).squeeze(-1)
    noise_mw = 10 ** (config.noise_dbm / 10)
    disturbance = (total - own_load * signal).clamp(min=0) + noise_mw
    size = state.signal_mw.shape[-1]
    slot = state.ring[:, None, None].expand(*cell.shape, 1).long()
    write = ~reestablishing[..., None]
    signal_ring = torch.where(write, state.signal_mw.scatter(-1, slot, signal[..., None]), state.signal_mw)
    disturbance_ring = torch.where(
        write, state.interference_mw.scatter(-1, slot, disturbance[..., None]), state.interference_mw
    )
    window = torch.where(reestablishing, window, (window + 1).clamp(max=size))
    age = (slot - torch.arange(size, device=slot.device)) % size
    recent = age < window[..., None]
    qin_recent = recent & (age < config.steps(config.qin_window_s))
    s_in, i_in = (signal_ring * qin_recent).sum(-1), (disturbance_ring * qin_recent).sum(-1)
    below_qout = (signal_ring * recent).sum(-1) < 10 ** (config.qout_db / 10) * (
        disturbance_ring * recent
    ).sum(-1)
    above_qin = s_in > 10 ** (config.qin_db / 10) * i_in

    # radio-link monitoring: N310, T310, N311; between Qout and Qin layer 1 indicates nothing
    broken = torch.where(above_qin | config.gap_breaks, 0, state.out_of_sync)
    out_of_sync = torch.where(
        connected, torch.where(below_qout, state.out_of_sync + 1, broken), state.out_of_sync
    )
    start_t310 = connected & below_qout & (state.t310_steps == NONE) & (out_of_sync >= config.n310)
    t310 = torch.where(start_t310, 0, state.t310_steps)
    running = connected & (t310 != NONE)
    in_sync = torch.where(start_t310, 0, state.in_sync)
    broken = torch.where(below_qout | config.gap_breaks, 0, in_sync)
    in_sync = torch.where(running, torch.where(above_qin, in_sync + 1, broken), in_sync)
    recovered = running & (in_sync >= config.n311)
    t310 = torch.where(recovered, NONE, torch.where(running, t310 + 1, t310))
    link_failed = running & ~recovered & (t310 > config.steps(config.t310_s))

    # ends of procedures; random access is repeated until T304 runs out
    below_access = (signal_ring * recent).sum(-1) < 10 ** (config.access_db / 10) * (
        disturbance_ring * recent
    ).sum(-1)
    repeat_steps = max(0, config.steps(config.t304_s) - max(1, config.steps(config.execution_s)))
    handover_failed = executing & (timer + repeat_steps <= 0) & below_access
    succeeded = executing & (timer <= 0) & ~below_access
    completes = handover_failed | succeeded
    ping_pong = succeeded & (cell == state.previous) & (stay <= config.steps(config.ping_pong_s))
    searched = reestablishing & (timer <= 0)
    best = state.rsrp_dbm.argmax(-1, keepdim=True)
    suitable = (state.rsrp_dbm.gather(-1, best) > config.suitable_dbm).squeeze(-1)
    reconnects = searched & suitable
    serving = torch.where(
        succeeded, cell.int(), torch.where(reconnects, best.squeeze(-1).int(), state.serving)
    )
    previous = torch.where(succeeded, state.serving, torch.where(reconnects, NONE, state.previous))
    failed = link_failed | handover_failed
    status = torch.where(failed, REESTABLISHING, torch.where(succeeded | reconnects, CONNECTED, status))
    timer = torch.where(
        failed | (searched & ~suitable), max(1, config.steps(config.reestablishment_s)), timer
    )
    fresh = completes | reconnects

    # what the air offers
    only = cell[..., None, None].expand(*cell.shape, 1, ray.shape[-1])
    served_mw = mean_mw.gather(-1, cell[..., None])

    def in_bands(served_ray: Tensor) -> Tensor:
        return served_mw.float() * (served_ray.squeeze(-2) @ phasors.T).abs().square()

    signals = in_bands(ray.gather(-2, only)) if config.bands > 1 else signal[..., None]
    reported = signals
    if config.reports:
        late_turns = fading_turns - config.cqi_delay_s / dt * (fading_turns - state.fading_turns)
        link = replace(
            world,
            fading_direction=world.fading_direction.gather(-2, only),
            fading_phase=world.fading_phase.gather(-2, only),
        )
        served_rice = None if rice is None else rice.gather(-1, cell[..., None])
        reported = in_bands(rays(link, late_turns, served_rice))
    noise = disturbance[..., None]
    told = signals / noise, reported / noise
    offered = offered_rates(state.olla_db, config, *told)

    # traffic and scheduling
    clock = state.clock_steps.double()
    arrived, queue = arrive(world, state.arrived, state.queue_bits, clock * dt)
    free = (1 - world.background_load).clamp(min=config.foreground_share) - state.reserved
    pool = free / config.bands
    own = world.demand_bps + queue / dt
    wanted = torch.where(connected, own + state.bulk_bits / dt, 0.0)
    asked, sent, used = wanted, torch.zeros_like(wanted), torch.zeros_like(state.load)
    granted = []
    for rate, expected in zip(*(offer.unbind(-1) for offer in offered), strict=True):
        need = torch.where((wanted > 0) & (rate >= 0), wanted / rate, 0.0)
        fair = config.scheduler == "proportional_fair"
        priority = expected / state.average_bps.clamp(min=LEAST_MEAN_BPS) if fair else expected
        share = shares(config.scheduler, need, priority, cell, pool)
        granted.append(share)
        sent = sent + share * rate
        wanted = torch.where((share < need) | (rate < 0), wanted - share * rate, 0.0)
        used = used.scatter_add(1, cell, share.float())
    olla_db = state.olla_db
    if config.adapts:
        given = torch.stack(granted, -1)
        block_bps, error = transport_blocks(state.olla_db, config, given, *told)
        sent = torch.minimum(block_bps, asked)
        olla_db = torch.where(given.sum(-1) > LEAST_SHARE, olla_step(olla_db, error), olla_db).float()
    load = (world.background_load + state.reserved + used).clamp(max=1)
    average = state.average_bps
    if config.scheduler == "proportional_fair":
        average = average + (sent - average) * config.fairness
    bulk = torch.minimum((sent - own).clamp(min=0) * dt, state.bulk_bits)
    sent = sent - bulk / dt
    packets, queue, delay = depart(world, arrived, state.packets, queue, sent * dt, (clock + 1) * dt)

    def count(total: Tensor, event: Tensor) -> Tensor:
        return total + event.int()

    return State(
        travelled_m=travelled,
        stopped_s=stopped.float(),
        fading_turns=fading_turns,
        serving=serving.int(),
        status=status.int(),
        timer_steps=timer.int(),
        target=torch.where(completes | failed, NONE, state.target).int(),
        command_steps=torch.where(waiting, state.command_steps - 1, state.command_steps).int(),
        previous=previous.int(),
        stay_steps=torch.where(succeeded | reconnects, 0, stay).int(),
        signal_mw=signal_ring,
        interference_mw=disturbance_ring,
        window_steps=torch.where(fresh, 0, window).int(),
        t310_steps=torch.where(fresh | link_failed, NONE, t310).int(),
        out_of_sync=torch.where(fresh, 0, out_of_sync).int(),
        in_sync=torch.where(fresh, 0, in_sync).int(),
        sinr=torch.where((connected & ~link_failed) | succeeded, s_in / i_in.clamp(min=1e-30), 0.0),
        rsrp_sum_mw=state.rsrp_sum_mw + received,
        rsrp_dbm=state.rsrp_dbm,
        olla_db=torch.where(fresh, 0.0, olla_db),
        load=load,
        average_bps=torch.where(fresh, 0.0, average.float()),
        queue_bits=queue,
        arrived=arrived,
        bulk_bits=state.bulk_bits - bulk,
        reserved=state.reserved,
        clock_steps=state.clock_steps + 1,
        ring=((state.ring + 1) % size).int(),
        measured_steps=state.measured_steps + 1,
        outage_steps=count(state.outage_steps, executing | reestablishing | (connected & below_qout)),
        interrupted_steps=count(state.interrupted_steps, executing),
        handovers=count(state.handovers, succeeded),
        ping_pongs=count(state.ping_pongs, ping_pong),
        link_failures=count(state.link_failures, link_failed),
        handover_failures=count(state.handover_failures, handover_failed),
        searches_failed=count(state.searches_failed, searched & ~suitable),
        bits=state.bits + sent * dt,
        packets=packets,
        delay_s=state.delay_s + delay,
        load_steps=state.load_steps + load,
    )
