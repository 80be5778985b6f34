"""Many users and cells over time: movement, fading, measurements, radio-link monitoring, load and energy."""

from pathlib import Path


def forget_stale_loops(folder: Path) -> None:
    """Removes Numba's compiled loops of a folder that are older than one of its sources.

    Numba itself looks at the source of the outermost function alone, although others are compiled into it.
    """
    changed_s = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        try:
            if index.stat().st_mtime < changed_s:
                index.unlink()
        except OSError:  # another process was faster, or it isn't ours to remove
            continue


forget_stale_loops(Path(__file__).parent)
