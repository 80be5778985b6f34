"""Precoders on the walks of a city: drawn places, the sites that serve them, a split by walk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from defiance.control.csi.targets import BLOCKS_PER_SUBBAND, RESOURCE_BLOCK_HZ, SUBBANDS, eigenvectors
from defiance.errors import DefianceError
from defiance.radio.arrays import Panel, Paths, channel, local_angles
from defiance.radio.tr38901 import element_gain_db
from defiance.scene.paths import Walks, load_walks
from defiance.seeding import stream
from defiance.studies.csi.settings import Config

DEVICE = Panel(1, 1, dual=True)
"""Two receive antennas, crossed."""
SHARES = {"training": 0.6, "validation": 0.2}
"""Of the walks; the rest tests."""


@dataclass(frozen=True)
class Precoders:
    """Links between devices on walks and the cells that serve them.

    Attributes:
        w: strongest eigenvectors, complex64 [n, K, ports].
        channels: one resource element of each sub-band, complex64 [n, rx, ports, K].
        cell: int64 [n].
        walk: int64 [n].
        cell_site: of every cell of the city, int64 [cells].
        site_position_m: [sites, 3].
        walks: how many the city has.
    """

    w: Tensor
    channels: Tensor
    cell: Tensor
    walk: Tensor
    cell_site: Tensor
    site_position_m: Tensor
    walks: int

    def __len__(self) -> int:
        return len(self.w)

    @property
    def site(self) -> Tensor:
        """That serves each link, int64 [n]."""
        return self.cell_site[self.cell]

    @property
    def sites(self) -> int:
        """Of the city."""
        return int(self.cell_site.max()) + 1

    def part(self, purpose: str, seed: int) -> Tensor:
        """Links for `training`, `validation` or `test`, int64 [m]: of whole walks, drawn by the seed."""
        order = torch.randperm(self.walks, generator=stream(seed, "csi", "walks").generator())
        sizes = [max(1, round(share * self.walks)) for share in SHARES.values()]
        first, second = sizes[0], min(sum(sizes), self.walks - 1)
        chosen = {"training": order[:first], "validation": order[first:second], "test": order[second:]}[
            purpose
        ]
        return torch.isin(self.walk, chosen).nonzero()[:, 0]


@lru_cache(maxsize=2)
def precoders(config: Config, city: str) -> Precoders:
    """Draws places on every walk of a city; each is served by the sites that reach it well.

    Raises:
        DefianceError: there are no such walks, fewer than three, or a link that is not finite.
    """
    walks = load_walks(city, config.band)
    count = len(walks.position_m)
    if count < 3:
        raise DefianceError(f"{city} has {count} walks; training, validation and test want one each")
    walk = torch.arange(count).repeat_interleave(config.places)
    share = torch.rand(len(walk), generator=stream(0, "csi", "places").generator(), dtype=torch.float64)
    paths = walks.at(walk, share * walks.length_m[walk])
    power = cell_power(walks, paths)
    site, place, cell = _served(walks.cell_site, power, config.margin_db)
    found = channel(
        Paths(paths.delay_s[site, place], paths.gain[site, place],
                    paths.departure[site, place], paths.arrival[site, place]),
        config.panel,
        DEVICE,
        (RESOURCE_BLOCK_HZ, BLOCKS_PER_SUBBAND * SUBBANDS),
        sender_bearing_rad=walks.bearing_rad[cell].float(),
        sender_tilt_rad=walks.tilt_rad[cell].float(),
    )  # fmt: skip
    w = torch.cat([eigenvectors(some) for some in found.split(1000)])
    middle = found[..., BLOCKS_PER_SUBBAND // 2 :: BLOCKS_PER_SUBBAND].clone()
    return Precoders(w, middle, cell, walk[place], walks.cell_site, walks.site_position_m, count)


def cell_power(walks: Walks, paths: Paths) -> Tensor:
    """Power that each cell's elements send to each place, [cells, n], from paths [sites, n, P]."""
    found = []
    for cell, site in enumerate(walks.cell_site.tolist()):
        one = walks.bearing_rad[cell].float()[None, None], walks.tilt_rad[cell].float()[None, None]
        zenith, azimuth, _ = local_angles(paths.departure[site], *one)
        gain = 10 ** (element_gain_db(zenith.rad2deg(), azimuth.rad2deg()) / 10)
        found.append((paths.power[site] * gain).sum(-1))
    return torch.stack(found)


def _served(cell_site: Tensor, power: Tensor, margin_db: float) -> tuple[Tensor, Tensor, Tensor]:
    """Site, place and cell of every link: of each site its strongest cell, if near the strongest of all."""
    limit = power.amax(0) * 10 ** (-margin_db / 10)
    links = []
    for site in range(int(cell_site.max()) + 1):
        cells = (cell_site == site).nonzero()[:, 0]
        best = power[cells].max(0)
        place = ((best.values >= limit) & (best.values > 0)).nonzero()[:, 0]
        links.append(torch.stack([torch.full_like(place, site), place, cells[best.indices[place]]]))
    site, place, cell = torch.cat(links, 1)
    return site, place, cell
