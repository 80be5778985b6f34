"""The command line: `defiance list | run | trace | trace-paths | drives | report | demo | codec | ...`.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import ast
import errno
import hashlib
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from defiance import __version__, config, mlflow_store, studies
from defiance.cli_fl import fl
from defiance.errors import DefianceError
from defiance.parts import Parts, write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table

    from defiance.kpm import Sheet
    from defiance.scene.drive_fits import CellStatistics, HeldOut

PACKAGE = Path(__file__).parent
SHOW_AFTER_S = 2.0
LINE_EVERY_S = 10.0

Mlflow = Annotated[
    str,
    typer.Option(
        metavar="sqlite:///FILE",
        help="Add the sheet to an MLflow database as a run, too (extra `mlflow`).",
        show_default="none",
    ),
]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
codec = typer.Typer(help="Send what an event camera sees as packets, and name it at the other end.")
app.add_typer(codec, name="codec")
app.add_typer(fl, name="fl")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 2 a line on stderr says what is wrong, 130 interrupted.

    Args:
        arguments: default: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        status = command.main(
            [argument for argument in given if argument != "--debug"] or ["--help"],
            prog_name="defiance",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except click.exceptions.Abort:  # what click makes of Ctrl-C
        _complain("interrupted")
        status = 130
    except (DefianceError, click.ClickException) as error:
        if "--debug" in given:
            raise
        _complain(error.format_message() if isinstance(error, click.ClickException) else str(error))
        status = 2
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more can be said there
        status = 1
        if error.errno == errno.ENOSPC:
            _complain("the output could not be written: No space left on device")
            status = 2
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str) -> None:
    print("defiance:", " ".join(message.split()), file=sys.stderr)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"defiance {__version__}")
        raise typer.Exit


@app.callback(epilog="An error is one line and exit status 2; --debug with any command shows where it arose.")
def _defiance(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Is AI in a cellular network worth its cost, and where should it be trained and run?"""


@app.command("list")
def list_(
    study: Annotated[str | None, typer.Argument(help="Show this study's presets and keys.")] = None,
) -> None:
    """List studies and scenes, or a study's presets and keys."""
    from rich.console import Console

    if study is None:
        _list_all(Console(highlight=False))
    else:
        _list_study(Console(highlight=False), study)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="Name of the study; `defiance list` shows them.")],
    preset: Annotated[
        str, typer.Option(help="quick: minutes, few seeds; full: what is published.")
    ] = "quick",
    seed: Annotated[int, typer.Option(min=0, help="First seed.")] = 0,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds.", show_default="preset's")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="out/STUDY")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="TOML file with keys to change.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key; may be repeated.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(min=0, max=256, help="Processes that compute the parts.", show_default="one per core"),
    ] = 0,
    ray: Annotated[
        str,
        typer.Option(
            metavar="auto|HOST:PORT",
            help="A Ray cluster computes them instead (extra `ray`).",
            show_default="none",
        ),
    ] = "",
    mlflow: Mlflow = "",
    json: Annotated[bool, typer.Option("--json", help="Print the sheet as JSON and nothing else.")] = False,
) -> None:
    """Run a study: sheet, report, figures and tables in a folder, the verdict here.

    An interrupted run goes on where it stopped when the same command is given again. Who computes, --workers
    or --ray, changes nothing in the results and may be another the next time.
    """
    if workers and ray:
        raise DefianceError("--workers counts processes of this machine, --ray takes a cluster; give one")
    if mlflow:
        mlflow_store.database(mlflow)
    begun_s = time.monotonic()
    module = studies.load(study)
    if preset not in module.PRESETS:
        raise DefianceError(f"--preset {preset!r}: {study} has {', '.join(module.PRESETS)}")
    settings = settings or []
    chosen = config.build(module.Config, config_file, settings, module.PRESETS[preset])
    count = seeds or module.SEEDS[preset]
    out = out or Path("out") / study
    parts = Parts.open(out / "parts", _fingerprint(study, chosen))
    progress = _Progress(shown=not json)
    if len(parts) and not json:
        progress.say(f"{len(parts)} parts finished earlier are taken from {parts.folder}")
    write_atomically(out / "config.toml", config.to_toml(chosen))
    try:
        with progress:
            sheet = module.run(
                chosen,
                seeds=tuple(range(seed, seed + count)),
                parts=parts,
                progress=progress,
                workers=studies.Workers(workers, ray),
            )
            command = [
                "defiance",
                "run",
                study,
                "--preset",
                preset,
                "--seed",
                str(seed),
                "--seeds",
                str(count),
            ]
            command += ["--config", str(config_file)] * (config_file is not None)
            command += [word for setting in settings for word in ("--set", setting)]
            sheet = replace(sheet, made_by=shlex.join(command))
            sheet.save(out / "sheet.json")
            page = _write_report([sheet], out, progress)
    except KeyboardInterrupt:
        kept = f"{len(parts)} finished parts are kept in {parts.folder}"
        _complain(f"interrupted; {kept}; run the same command again to go on")
        raise typer.Exit(130) from None
    if json:
        sys.stdout.write((out / "sheet.json").read_text(encoding="utf-8"))
    else:
        _print_sheet(sheet)
        print(f"\nreport  {page}, its figures and tables beside it")
        print(f"sheet   {out / 'sheet.json'}, its rows beside it as Parquet")
        print(f"took    {_duration(time.monotonic() - begun_s)}")
    if mlflow:
        _add_to_mlflow(mlflow, sheet, [out / "sheet.json", page, out / "config.toml"])


@app.command()
def demo() -> None:
    """Is learned handover worth its cost? The study `worth` with few seeds, written to out/worth."""
    run("worth")


@app.command()
def trace(
    name: Annotated[str, typer.Argument(help="City of Sionna RT, such as etoile, or a Mitsuba .xml file.")],
    sites: Annotated[
        Path | None,
        typer.Option(help="CSV, a row per sector; see docs/environments.md.", show_default="on roofs"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="NAME.npz")] = None,
) -> None:
    """Trace a city by rays (extra `rt`); a study takes it with --set scene=FILE."""
    from defiance.scene.sites import read_sites, strongest_dbm
    from defiance.scene.trace import trace as trace_city

    power_dbm = strongest_dbm(read_sites(sites)) if sites else None
    out = out or Path(Path(name).stem + ".npz")
    progress = _Progress(shown=True)
    with progress, progress.task(f"tracing {name}", total=1) as task:
        scene = trace_city(name, sites, out, progress=lambda done, total: task.advance(bool(done) / total))
    print(f"{out}: {len(scene.cell_site)} sectors on {len(scene.site_position_m)} sites; {scene.attribution}")
    if power_dbm is not None:
        print(f"its strongest sector sends {power_dbm:g} dBm: --set radio.tx_power_dbm={power_dbm:g}")


@app.command()
def trace_paths(
    scene: Annotated[str, typer.Argument(help="City that ships, such as munich, or a file of `trace`.")],
    city: Annotated[
        str | None,
        typer.Option(help="City or .xml file that it was traced from.", show_default="the scene's name"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="NAME-walks.npz")] = None,
    walks: Annotated[int, typer.Option(help="Walks on its streets, apart from each other.")] = 30,
    points: Annotated[int, typer.Option(help="Points of each.")] = 50,
    spacing_m: Annotated[float, typer.Option(help="From point to point.")] = 2.0,
    carrier_ghz: Annotated[
        list[float] | None, typer.Option(help="Of a band; repeat it for more.", show_default="3.5 and 28")
    ] = None,
    rays: Annotated[int, typer.Option(help="Of every site, to look for walls and edges.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Of the walks.")] = 1,
) -> None:
    """Trace the propagation paths from a scene's sites along walks (extra `rt`), for antenna arrays.

    `defiance.scene.paths.load_walks(FILE, "3.5ghz")` reads what it writes. Interrupted, it goes on
    where it stopped when it is called again.
    """
    from defiance.scene import load
    from defiance.scene.paths import CARRIERS_HZ
    from defiance.scene.trace_paths import trace_paths as trace_along

    where = load(scene)
    out = out or Path(f"{where.name}-walks.npz")
    progress = _Progress(shown=True)
    with progress, progress.task(f"tracing {where.name}", total=1) as task:
        shown = 0

        def show(done: int, total: int) -> None:
            nonlocal shown
            task.advance((done - shown) / total)
            shown = done

        found = trace_along(
            where,
            city or where.name,
            out,
            walks=walks,
            points=points,
            spacing_m=spacing_m,
            carriers_hz=[carrier * 1e9 for carrier in carrier_ghz or ()] or CARRIERS_HZ,
            samples_per_site=rays,
            seed=seed,
            progress=show,
        )
    there = found.track >= 0
    print(
        f"{out}: {int(there.sum())} paths from {len(found.site_position_m)} sites to {walks} walks of"
        f" {points} points; {float(there.any(-1).float().mean()):.0%} of these links have one;"
        f" {found.attribution}"
    )


@app.command()
def drives(
    folder: Annotated[Path, typer.Argument(help="G-NetTrack's CSV files, or one of them.")],
    sites: Annotated[Path | None, typer.Option(help="Site plan whose column cell names the cells.")] = None,
    origin: Annotated[
        tuple[float, float], typer.Option(help="Longitude and latitude of the plan's origin.")
    ] = (0.0, 0.0),
    scene: Annotated[Path | None, typer.Option(help="Scene file that was made of the plan.")] = None,
    cells: Annotated[int, typer.Option(min=0, help="Cells to list, those seen most often first.")] = 10,
) -> None:
    """What measured drives say of cells, and how models of their RSRP do on held-out drives."""
    from rich.console import Console

    from defiance.scene import drive_fits as fits
    from defiance.scene import drives as measured
    from defiance.scene import load
    from defiance.scene.sites import read_sites

    if scene and not sites:
        raise DefianceError("a scene's cells are known by their plan; give it, too: --sites PLAN.csv")
    read = measured.read_drives(folder)
    models: dict[str, fits.Model] = {"mean of the cell": fits.by_cell}
    if sites:
        plan = read_sites(sites)
        models["log-distance"] = fits.by_distance(plan, origin)
        if scene:
            models["scene"] = fits.by_scene(load(scene), plan, origin)
    console = Console(highlight=False, markup=False)
    rows = sum(map(len, read))
    left_out = sum(fault.row_left_out for drive in read for fault in drive.faults)
    faulty = sum(len(drive.faults) for drive in read) - left_out
    console.print(
        f"{len(read)} drives, {rows} rows; {left_out} rows left out, {faulty} values taken as missing"
    )
    for line in measured.describe_faults(read):
        console.print(line, soft_wrap=True)
    console.print(_cells_table(fits.cell_statistics(read)[:cells]))
    for name, model in models.items():
        shadowing = fits.fit_shadowing(read, model(read))
        spread, way = f"{shadowing.sigma_db:.1f} dB", f"{shadowing.correlation_m:.0f} m"
        console.print(f"\n{name}: shadowing {spread}, correlated over {way}")
        console.print(_held_out_table(fits.held_out(read, model)))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of `worth`.")],
    file: Annotated[Path, typer.Argument(help="ONNX file to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="Such as learned-device/central/raw/seed0.", show_default="the run's first"),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="Whose threshold, such as munich/30kmh/load50/cap8/raw.", show_default="the run's first"
        ),
    ] = None,
) -> None:
    """Write a trained handover function as ONNX (extra `onnx`), its observation contract in the metadata."""
    try:
        from defiance.studies.worth.export import export as export_function
    except ModuleNotFoundError as error:
        raise DefianceError(f"{error.name} is missing; pip install 'defiance-ran[onnx]'") from error

    name, where, threshold = export_function(run, file, model, scenario)
    print(f"{file}: {name}, threshold {threshold:g} of {where}")


@app.command()
def report(
    sheets: Annotated[list[Path], typer.Argument(help="A sheet.json or a run's folder; two are compared.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("out/report"),
    mlflow: Mlflow = "",
) -> None:
    """Write the report of a sheet, or of two side by side."""
    from defiance.kpm import Sheet

    if len(sheets) > 2:
        raise DefianceError(f"report compares two sheets, not {len(sheets)}")
    if mlflow:
        mlflow_store.database(mlflow)
    files = [path / "sheet.json" if path.is_dir() else path for path in sheets]
    loaded = [Sheet.load(file) for file in files]
    progress = _Progress(shown=True)
    with progress:
        page = _write_report(loaded, out, progress)
    for sheet in loaded:
        _print_sheet(sheet)
    print(f"\nreport  {page}")
    for sheet, file in zip(loaded, files, strict=True) if mlflow else ():
        _add_to_mlflow(mlflow, sheet, [file, page])


Candidate = Annotated[str, typer.Option(help="Whose codec; `defiance list coinference` names them.")]
Uses = Annotated[int, typer.Option(help="Channel uses per recording that it was trained for.")]
Data = Annotated[str, typer.Option(help="What it was trained on: nmnist, motion or digits.")]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--run", help="Folder of a run of `coinference` with its weights.", show_default="those that ship"
    ),
]


@codec.command()
def encode(
    source: Annotated[str, typer.Argument(help="File of events; or 40-bit events from - or HOST:PORT.")],
    destination: Annotated[str, typer.Argument(help="File, - or HOST:PORT, where `decode` waits.")],
    candidate: Candidate = "s-vdib",
    uses: Uses = 480,
    data: Data = "nmnist",
    folder: RunFolder = None,
    skip: Annotated[bool, typer.Option("--skip", help="Leave out and count what is broken.")] = False,
    paced: Annotated[bool, typer.Option("--paced", help="Send a file at a camera's pace.")] = False,
) -> None:
    """Encode events into packets, step by step, and say how long it took.

    Files and streams are cut into recordings by their clocks; these are sent one after the other.
    """
    from defiance.studies.coinference import live

    live.encode(
        live.Which(candidate, uses, data, folder),
        source,
        destination,
        broken="skip" if skip else "refuse",
        at_pace=paced,
    )


@codec.command()
def decode(
    source: Annotated[str, typer.Argument(help="File of packets, - or HOST:PORT to wait there.")],
    candidate: Candidate = "s-vdib",
    uses: Uses = 480,
    data: Data = "nmnist",
    folder: RunFolder = None,
    steps: Annotated[bool, typer.Option("--steps", help="Print every decision, not only the last.")] = False,
) -> None:
    """Decode packets, and print what each recording shows; then how long it took, and what was lost."""
    from defiance.studies.coinference import live

    live.decode(live.Which(candidate, uses, data, folder), source, every_step=steps)


def _seeds(count: int) -> str:
    return f"{count} seed" + ("" if count == 1 else "s")


def _fingerprint(study: str, chosen: Any) -> str:
    """What a run's parts depend on: study, configuration, the files it names, and the code that computes.

    `cli`, `cli_fl`, `mlflow_store`, `report` and a study's `sheet` are left out: they fold and show finished
    parts and can't change them. So are `prices`, which change only what is paid.
    """
    asked = replace(chosen, prices="") if hasattr(chosen, "prices") else chosen
    digest = hashlib.sha256(f"{study} {config.fingerprint(asked)}".encode())
    shown = (
        *PACKAGE.glob("cli*.py"),
        PACKAGE / "mlflow_store.py",
        PACKAGE / "report",
        *(PACKAGE / "studies").glob("*/sheet*"),
    )
    named = [
        Path(key.default) for key in config.describe(asked) if key.default and isinstance(key.default, str)
    ]
    named += [path for folder in filter(Path.is_dir, named) for path in sorted(folder.glob("*.csv"))]
    code = [path for path in sorted(PACKAGE.rglob("*.py")) if not {path, *path.parents}.intersection(shown)]
    shipped = sorted([*PACKAGE.glob("scene/data/**/*"), *PACKAGE.glob("studies/*/weights/*")])
    for path in (*code, *shipped, *filter(Path.is_file, named)):
        with suppress(OSError), path.open("rb") as file:  # who reads it says what is wrong
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write_report(sheets: "Sequence[Sheet]", folder: Path, progress: "_Progress") -> Path:
    from defiance.report import write_report

    with progress.task("writing the report", total=1):
        return write_report(sheets, folder)


def _add_to_mlflow(uri: str, sheet: "Sheet", files: Sequence[Path]) -> None:
    added = mlflow_store.add(uri, mlflow_store.of_sheet(sheet, files))
    print(f"mlflow  run {added} of the experiment {sheet.study}", file=sys.stderr)


def _print_sheet(sheet: "Sheet") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from defiance.report import summary_rows

    console = Console(highlight=False, markup=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for label, value, detail in summary_rows(sheet):
        table.add_row(Text(label), Text(value, style="bold"), Text(detail, style="dim"))
    console.print(f"{sheet.study}, {_seeds(len(sheet.seeds))}:", sheet.verdict, style="bold")
    console.print(table)


def _list_all(console: "Console") -> None:
    from rich.table import Table

    table = Table("study", "the question that it answers", box=None)
    for name, module in studies.STUDIES.items():
        table.add_row(name, _first_line(module))
    console.print(table)
    scenes = sorted(path.stem for path in (PACKAGE / "scene" / "data").glob("*.npz"))
    console.print(f"\nscenes: {', '.join(scenes)}; others are made by `defiance trace`", markup=False)
    console.print("a study's presets and keys: defiance list STUDY", markup=False)


def _list_study(console: "Console", name: str) -> None:
    from rich.table import Table

    study = studies.load(name)
    presets = {preset: config.describe(chosen) for preset, chosen in study.PRESETS.items()}
    table = Table("key", *presets, "takes", "unit", "what it is", box=None)
    for row in zip(*presets.values(), strict=True):
        values = [_shown(key.default) for key in row]
        table.add_row(row[0].name, *values, row[0].values, row[0].unit, row[0].help)
    named = ", ".join(f"{preset} ({_seeds(study.SEEDS[preset])})" for preset in presets)
    console.print(f"{_first_line(studies.STUDIES[name])}\npresets: {named}", markup=False)
    console.print("change a key with --set KEY=VALUE, many with --config FILE.toml\n", markup=False)
    console.print(table)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _first_line(module: str) -> str:
    """The first line of a module's docstring, without importing the module."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return ""
    text = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _cells_table(found: "Sequence[CellStatistics]") -> "Table":
    from rich.table import Table

    heads = ("cell", "drives", "rows", "arrivals", "RSRP", "+-", "5 %", "95 %", "SNR", "Mbit/s")
    table = Table(*heads, box=None, padding=(0, 1), pad_edge=False)
    for one in found:
        low_dbm, _, high_dbm = one.rsrp_quantiles_dbm
        levels = (one.rsrp_mean_dbm, one.rsrp_sd_db, low_dbm, high_dbm, one.snr_median_db)
        counts = (one.cell, one.drives, one.rows, one.arrivals)
        table.add_row(*map(str, counts), *(f"{x:.1f}" for x in (*levels, one.downlink_median_bps / 1e6)))
    return table


def _held_out_table(found: "Sequence[HeldOut]") -> "Table":
    from rich.table import Table

    table = Table("held-out drive", "rows", "known", "error", "promised", "distribution", "pooled", box=None)
    for one in found:
        errors = (one.error_db, one.sigma_db, one.distance_db, one.pooled_distance_db)
        known = f"{100 * one.known_share:.0f} %"
        table.add_row(one.drive, str(one.rows), known, *(f"{x:.1f} dB" for x in errors))
    return table


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"


class _Progress:
    """Progress on stderr: bars on a terminal, now and then a line elsewhere; nothing for short work."""

    def __init__(self, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False, quiet=not shown)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.last_line_s = time.monotonic() + SHOW_AFTER_S - LINE_EVERY_S
        self.timer = Timer(SHOW_AFTER_S, self.bars.start)
        self.timer.daemon = True

    def __enter__(self) -> "_Progress":
        if self.console.is_terminal and not self.console.quiet:
            self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        if self.timer.is_alive():
            self.timer.join()
        if self.bars.live.is_started:
            self.bars.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False)

    @contextmanager
    def task(self, description: str, total: float) -> "Iterator[_Task]":
        """A piece of work; see `studies.Progress`."""
        number = self.bars.add_task(description, total=total)
        try:
            yield _Task(self, number)
        finally:
            self.bars.remove_task(number)


class _Task:
    def __init__(self, progress: _Progress, number: "TaskID") -> None:
        self.progress, self.number = progress, number

    def advance(self, n: float = 1) -> None:
        """Says that `n` more are done."""
        progress = self.progress
        progress.bars.advance(self.number, n)
        now_s = time.monotonic()
        if not progress.console.is_terminal and now_s - progress.last_line_s >= LINE_EVERY_S:
            progress.last_line_s = now_s
            progress.say(
                ", ".join(f"{task.description} {task.percentage:.0f} %" for task in progress.bars.tasks)
            )
