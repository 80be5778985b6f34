"""The study `worth` on a user's own network: site plan, drives and prices, at toy size."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from worth_toy import made_up_city, toy

from defiance.errors import DefianceError
from defiance.kpm import Sheet
from defiance.parts import Parts
from defiance.scene import load, save
from defiance.scene.trace import trace
from defiance.studies import Silent, worth
from defiance.studies.worth.environment import prepare
from defiance.studies.worth.settings import Config, check
from defiance.studies.worth.worlds import held_out

HEADER = (
    "Timestamp,Longitude,Latitude,Speed,NetworkMode,RSRP,RSRQ,SNR,CQI,DL_bitrate,UL_bitrate,RAWCELLID,NRxRSRP"
)
PLAN = """name,x_m,y_m,height_m,azimuth_deg,tilt_deg,power_dbm,carrier_mhz
hall,60,40,25,0,6,43,3500
hall,60,40,25,180,6,43,3500
school,190,150,20,90,6,40,3500
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "sites.csv").write_text(PLAN)
    save(made_up_city("munich", 0), folder / "munich.npz")
    (folder / "traces").mkdir()
    for hour, mean_dbm in ((8, -84.0), (9, -86.0)):
        levels_dbm = np.random.default_rng(hour).normal(mean_dbm, 9.0, 300).round(1)
        rows = [
            f"2026.01.05_{hour:02}.{n // 60:02}.{n % 60:02},-8.5,51.9,30,LTE,{level},-9,9,9,99,9,7,-"
            for n, level in enumerate(levels_dbm)
        ]
        rows[0] = rows[0].replace(",-9,9,9,", ",-9,high,9,") if hour == 8 else rows[0]
        (folder / "traces" / f"{hour}.csv").write_text("\n".join([HEADER, *rows]))
    (folder / "prices.toml").write_text(
        'source = "my meters"\n[cell]\nidle_w = 200.0\nfull_load_w = 872.0\n'
        '[electricity]\ncurrency = "SEK"\nnetwork_per_kwh = 2.0\n'
    )
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    return replace(
        toy(folder),
        unseen_scene="",
        propagation="umi",
        sites=str(folder / "sites.csv"),
        traces=str(folder / "traces"),
        placements=("device",),
        regimes=("central",),
        test_s=5.0,
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts.open(tmp_path_factory.mktemp("parts"), "mine")


@pytest.fixture(scope="module")
def sheets(config: Config, folder: Path, parts: Parts) -> tuple[Sheet, Sheet]:
    """With the cited constants, and folded anew with the user's."""
    priced = replace(config, prices=str(folder / "prices.toml"))
    return (
        worth.run(config, seeds=(0,), parts=parts, progress=Silent()),
        worth.run(priced, seeds=(0,), parts=parts, progress=Silent()),
    )


def test_the_scene_is_the_plan_shifted_to_the_drives(config: Config, parts: Parts) -> None:
    made = prepare(config, parts, Silent())
    scene = load(made.config.scene)
    assert scene.cell_site.tolist() == [0, 0, 1] and "streets of munich" in scene.attribution
    assert made.config.radio.tx_power_dbm == 43.0
    best_dbm = scene.path_gain_db.amax(0)[scene.outdoor].mean().item() + 43.0 - 10 * np.log10(612)
    assert best_dbm == pytest.approx(-85.0, abs=0.3)
    assert made.calibration is not None and len(made.calibration.distance_db) == 2
    assert prepare(config, parts, Silent()).calibration == made.calibration


def test_the_sheet_tells_what_was_asked_and_how_far_the_scene_is_from_the_drives(
    sheets: tuple[Sheet, Sheet], config: Config
) -> None:
    sheet = sheets[0]
    assert sheet.config["sites"] == config.sites and "constants" not in sheet.config
    assert sheet.value("rsrp_offset", candidate="scene").unit == "dB"
    assert "to 2 measured drives" in sheet.verdict and "Faults of their files (1) are named" in sheet.verdict
    assert "8.csv, row 2, column SNR: high is" in sheet.config["trace_faults"][0].replace("'", "")
    distance = sheet.value("rsrp_distance", candidate="scene")
    assert distance.n == 2 and 0 < distance.mean < 15
    assert {row.scenario.split("/")[0] for row in sheet.rows} >= {"munich"}


def test_prices_change_joules_and_nothing_else(sheets: tuple[Sheet, Sheet]) -> None:
    """Idle 112 -> 200 W and full 448 -> 872 W: what a used block costs doubles."""
    cited, own = sheets
    for before, after in zip(
        cited.select(metric="energy_per_bit"), own.select(metric="energy_per_bit"), strict=True
    ):
        assert after.mean == pytest.approx(2 * before.mean)
        assert (before.provenance, after.provenance) == ("modelled", "user")
    for metric in ("outage_share", "throughput", "training_operations_total", "handovers_per_user_minute"):
        assert cited.select(metric=metric) == own.select(metric=metric)
    load = own.value("load", candidate="a3").mean
    network_j = own.value("energy", candidate="a3", node="network").mean
    assert network_j == pytest.approx(3 * 5.0 * (200 + 672 * load), rel=1e-6)
    assert own.config["constants"]["cell"]["idle_w"] == 200.0


def test_prices_of_electricity_make_a_bill(sheets: tuple[Sheet, Sheet]) -> None:
    cited, own = sheets
    assert not cited.select(metric="electricity_payback_time")
    saved = own.value("electricity_saved_per_user_year")
    assert (saved.unit, saved.provenance) == ("SEK", "user")
    assert "earned back" in own.verdict and "earned back" not in cited.verdict
    # what is saved at devices isn't billed: watts of the network alone, 2 SEK per kWh
    rule, learned = (own.value("energy", candidate=c, node="device").mean for c in ("a3", "learned-device"))
    watts = own.value("saved_power_per_user").mean - (rule - learned) / (6 * 5.0)
    assert saved.mean == pytest.approx(watts * 2 * 24 * 365.25 / 1000)


def test_a_plan_that_models_cannot_leave_is_refused_before_it_is_traced(config: Config, parts: Parts) -> None:
    rays = replace(config, propagation="rays", unseen_scene="florence")
    with pytest.raises(DefianceError, match=r"sites\.csv has 3 sectors and unseen_scene florence 21"):
        prepare(rays, parts, Silent())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"propagation": "uma"}, "propagation uma is that of a site plan"),
        ({"scene": "plain"}, "a plain needs a site plan and its propagation"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(folder: Path, wrong: dict, message: str) -> None:
    with pytest.raises(DefianceError, match=message):
        check(replace(toy(folder), **wrong))


def test_a_plan_is_traced_by_rays_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sionna_rt: object
) -> None:
    """A street canyon of Sionna RT, few rays: a scene of its own, and no second tracing."""
    (tmp_path / "sites.csv").write_text(PLAN.replace("60,40", "0,0").replace("190,150", "10,5"))
    few = partial(trace, samples_per_tx=100_000, max_depth=1, extent_m=120.0)
    monkeypatch.setattr("defiance.studies.worth.environment.trace", few)
    asked = replace(
        toy(tmp_path),
        scene="simple_street_canyon",
        unseen_scene="",
        sites=str(tmp_path / "sites.csv"),
        propagation="rays",
    )
    parts = Parts.open(tmp_path / "parts", "rays")
    made = prepare(asked, parts, Silent()).config
    scene = load(made.scene)
    assert "traced with Sionna RT" in scene.attribution and scene.cell_site.tolist() == [0, 0, 1]
    assert (made.sites, made.radio.tx_power_dbm) == ("", 43.0)
    assert (scene.path_gain_db.amax(0)[scene.outdoor] > -120).float().mean() > 0.5
    with pytest.raises(DefianceError, match="trace a larger area"):  # one street has no block to hold out
        held_out(made, "simple_street_canyon")
    monkeypatch.delattr("defiance.studies.worth.environment.trace")
    assert prepare(asked, parts, Silent()).config == made
