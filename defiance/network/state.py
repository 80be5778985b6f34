"""State of the network, and what a step may be asked to do.

Shapes: W worlds, U users, C cells, K steps of the Qout window.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from defiance.network.settings import RadioConfig
from defiance.network.world import World

Value = TypeVar("Value")

CONNECTED, EXECUTING, REESTABLISHING = 0, 1, 2
NONE = -1


@dataclass(frozen=True)
class State:
    """Everything that changes, one tensor each; `step` returns a new one.

    Attributes:
        travelled_m: distance along the route, `[W, U]` float64.
        stopped_s: time left at the present stop, `[W, U]`.
        fading_turns: wavelengths travelled (with moving scatterers), `[W, U]` float64.
        serving: serving cell, `[W, U]` int32; during execution and re-establishment the last one.
        status: CONNECTED, EXECUTING or REESTABLISHING, `[W, U]` int32.
        timer_steps: steps left in EXECUTING or REESTABLISHING, `[W, U]` int32.
        target: cell that a handover command names, `[W, U]` int32, NONE without one.
        command_steps: steps until that command arrives, `[W, U]` int32.
        previous: cell served before, `[W, U]` int32.
        stay_steps: steps since the last change of cell, `[W, U]` int32.
        signal_mw, interference_mw: ring of the last K steps, `[W, U, K]`.
        window_steps: how many entries of the ring count, `[W, U]` int32 (restarts at a handover).
        t310_steps: steps that T310 has run, NONE when stopped, `[W, U]` int32.
        out_of_sync, in_sync: indications since the last of the other kind, `[W, U]` int32.
        sinr: linear SINR towards the serving cell over the Qin window, `[W, U]`; 0 while not connected.
        rsrp_sum_mw: received power per cell since the last measurement, `[W, U, C]`.
        rsrp_dbm: last layer-1 measurement per resource element, `[W, U, C]`; used by re-establishment.
        olla_db: offset of the outer loop of link adaptation, `[W, U]`.
        load: share of PRBs occupied, `[W, C]`.
        average_bps: past mean rate in this cell, `[W, U]`; kept by proportional fairness alone.
        queue_bits: bits of packets that wait, `[W, U]` float64.
        arrived: packets that have arrived, `[W, U]` int32.
        bulk_bits: bits of other payloads that wait behind the user's own traffic, `[W, U]` float64.
        reserved: share of PRBs that signalling takes in the next step, ahead of all else, `[W, C]`.
        clock_steps: steps since the start, `[W]` int32.
        ring: where the next entry of the ring goes, `[W]` int32.
        measured_steps: steps since the last measurement, `[W]` int32.
        outage_steps, interrupted_steps, handovers, ping_pongs, link_failures, handover_failures: counts,
            `[W, U]` int32.
        searches_failed: times that a re-establishment found no cell and began anew, `[W, U]` int32.
        bits: delivered of the user's own traffic, `[W, U]` float64.
        packets: packets that have departed, `[W, U]` int32.
        delay_s: sum of their delays, from arrival until all is sent, `[W, U]` float64.
        load_steps: sum of the load over steps, `[W, C]` float64.
    """

    travelled_m: Tensor
    stopped_s: Tensor
    fading_turns: Tensor
    serving: Tensor
    status: Tensor
    timer_steps: Tensor
    target: Tensor
    command_steps: Tensor
    previous: Tensor
    stay_steps: Tensor
    signal_mw: Tensor
    interference_mw: Tensor
    window_steps: Tensor
    t310_steps: Tensor
    out_of_sync: Tensor
    in_sync: Tensor
    sinr: Tensor
    rsrp_sum_mw: Tensor
    rsrp_dbm: Tensor
    olla_db: Tensor
    load: Tensor
    average_bps: Tensor
    queue_bits: Tensor
    arrived: Tensor
    bulk_bits: Tensor
    reserved: Tensor
    clock_steps: Tensor
    ring: Tensor
    measured_steps: Tensor
    outage_steps: Tensor
    interrupted_steps: Tensor
    handovers: Tensor
    ping_pongs: Tensor
    link_failures: Tensor
    handover_failures: Tensor
    searches_failed: Tensor
    bits: Tensor
    packets: Tensor
    delay_s: Tensor
    load_steps: Tensor

    def clone(self) -> State:
        """A copy that shares no memory."""
        return State(**{f.name: getattr(self, f.name).clone() for f in fields(self)})

    def to(self, device: torch.device | str) -> State:
        """The same state on another device."""
        return State(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def but(value: Value, /, **changed: Any) -> Value:
    """A dataclass with other fields; `dataclasses.replace` takes its time, and checks what is known."""
    other = object.__new__(type(value))
    other.__dict__.update(value.__dict__, **changed)
    return other


def initial(world: World, config: RadioConfig, serving: Tensor) -> State:
    """Every user at the start of its route, in the cell `serving`, `[W, U]`; on the world's device."""
    worlds, users, cells = world.shape
    window = config.steps(config.qout_window_s)
    device = world.gain_db.device

    def counts(value: int = 0) -> Tensor:
        return torch.full((worlds, users), value, dtype=torch.int32, device=device)

    return State(
        travelled_m=torch.zeros(worlds, users, dtype=torch.float64, device=device),
        stopped_s=torch.zeros(worlds, users, device=device),
        fading_turns=torch.zeros(worlds, users, dtype=torch.float64, device=device),
        serving=serving.to(device).int(),
        status=counts(CONNECTED),
        timer_steps=counts(),
        target=counts(NONE),
        command_steps=counts(),
        previous=counts(NONE),
        stay_steps=counts(),
        signal_mw=torch.zeros(worlds, users, window, device=device),
        interference_mw=torch.zeros(worlds, users, window, device=device),
        window_steps=counts(),
        t310_steps=counts(NONE),
        out_of_sync=counts(),
        in_sync=counts(),
        sinr=torch.zeros(worlds, users, device=device),
        rsrp_sum_mw=torch.zeros(worlds, users, cells, device=device),
        rsrp_dbm=torch.full((worlds, users, cells), -200.0, device=device),
        olla_db=torch.zeros(worlds, users, device=device),
        load=world.background_load.clone(),
        average_bps=torch.zeros(worlds, users, device=device),
        queue_bits=torch.zeros(worlds, users, dtype=torch.float64, device=device),
        arrived=counts(),
        bulk_bits=torch.zeros(worlds, users, dtype=torch.float64, device=device),
        reserved=torch.zeros(worlds, cells, device=device),
        clock_steps=torch.zeros(worlds, dtype=torch.int32, device=device),
        ring=torch.zeros(worlds, dtype=torch.int32, device=device),
        measured_steps=torch.zeros(worlds, dtype=torch.int32, device=device),
        outage_steps=counts(),
        interrupted_steps=counts(),
        handovers=counts(),
        ping_pongs=counts(),
        link_failures=counts(),
        handover_failures=counts(),
        searches_failed=counts(),
        bits=torch.zeros(worlds, users, dtype=torch.float64, device=device),
        packets=counts(),
        delay_s=torch.zeros(worlds, users, dtype=torch.float64, device=device),
        load_steps=torch.zeros(worlds, cells, dtype=torch.float64, device=device),
    )


def reestablish(state: State, which: Tensor, config: RadioConfig) -> State:
    """The state in which the links of some users, `[W, U]` bool, are lost, to be re-established."""
    timer = max(1, config.steps(config.reestablishment_s))
    return but(
        state,
        status=torch.where(which, REESTABLISHING, state.status).int(),
        timer_steps=torch.where(which, timer, state.timer_steps).int(),
        target=torch.where(which, NONE, state.target).int(),
        t310_steps=torch.where(which, NONE, state.t310_steps).int(),
    )


def sinr_db(state: State) -> Tensor:
    """SINR towards the serving cell averaged over the Qin window, `[W, U]`; -inf while not connected."""
    return 10 * torch.log10(state.sinr)
