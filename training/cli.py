"""`nightread train ...`: from a download to a checkpoint. A command imports its libraries when it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Prepare films, fit networks, and see what they learned.")

Folder = Annotated[Path, typer.Argument(help="The prepared folder (made, or gone on with).", file_okay=False)]


@app.command()
def prepare(
    folder: Folder,
    table: Annotated[
        Path | None,
        typer.Option(help="NIH's Data_Entry CSV (2017 or v2020), or any CSV of image, patient, view and findings."),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="A folder, .zip, .tar or .tar.gz with the films; may be given again.")
    ] = None,
    lists: Annotated[
        Path | None, typer.Option(help="The folder of NIH's train_val_list.txt and test_list.txt.", file_okay=False)
    ] = None,
    size: Annotated[list[int] | None, typer.Option(help="Side of the squares in pixels; may be given again.")] = None,
    processes: Annotated[int, typer.Option(help="Processes that decode; 0 is this one alone.", min=0)] = 0,
    keep_unknown_view: Annotated[bool, typer.Option(help="Keep the films of a CSV whose view is empty.")] = False,
    kaggle: Annotated[
        Path | None, typer.Option(help="Fetch NIH's set from Kaggle into this folder first (42 GB, needs a token).")
    ] = None,
) -> None:
    """Films and their table -> a manifest and small 8-bit squares. Interrupted, it goes on where it stopped."""
    from training import nih, prepared
    from training.manifest import ManifestError, read_csv
    from training.sources import AmbiguousImage

    if kaggle is not None:
        images = [nih.fetch(kaggle)]
        table, lists = table or images[0] / "Data_Entry_2017.csv", lists or images[0]
    if table is None or not images:
        raise typer.BadParameter("give --table and --images, or --kaggle")
    try:
        if nih.is_nih(table):
            manifest = nih.read_nih(table, lists=lists)
        else:
            manifest = read_csv(table, keep_unknown=keep_unknown_view)
        with _bar("films", total=len(manifest)) as advance:
            outcomes = prepared.prepare(
                manifest, images, folder, sizes=size or (224,), processes=processes, progress=advance
            )
    except (ManifestError, prepared.NotPrepared, AmbiguousImage, FileNotFoundError) as wrong:
        raise typer.BadParameter(str(wrong)) from wrong
    typer.echo(f"{len(manifest):,} frontal films: " + ", ".join(f"{n:,} {what}" for what, n in outcomes.items()))
    if set(outcomes) - {prepared.READY}:
        typer.echo(f"the others, one by one: {folder / 'bad_files.csv'}")


@contextmanager
def _bar(what: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields the function that moves it on by so many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda more: progress.advance(task, more)
