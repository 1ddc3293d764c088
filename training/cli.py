"""`nightread train ...`: from a download to a checkpoint. A command imports its libraries when it runs."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.provenance import code_commit
from training.settings import Selection, Settings, UnusableSettings, read_settings

if TYPE_CHECKING:
    from training.prepared import Prepared

app = typer.Typer(no_args_is_help=True, help="Prepare films, fit networks, and see what they learned.")

Folder = Annotated[Path, typer.Argument(help="The prepared folder (made, or resumed).", file_okay=False)]
Run = Annotated[Path, typer.Argument(help="The run's folder (made, or resumed).", file_okay=False)]
Size = Annotated[int | None, typer.Option(help="Which of the prepared sizes, in pixels; the smallest when not given.")]


def _read_file(context: typer.Context, path: Path | None) -> Path | None:
    """Let the settings of a file stand where the command line says nothing; what it says wins."""
    if path is not None:
        options = {each.name for each in context.command.params if each.param_type_name == "option" and each.name}
        try:
            context.default_map = read_settings(path, known=options - {"settings_file", "help"})
        except UnusableSettings as wrong:
            raise typer.BadParameter(str(wrong)) from wrong
    return path


SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        help="TOML file of these options (batch_size = 32); those on the command line win.",
        dir_okay=False,
        is_eager=True,
        callback=_read_file,
    ),
]


def _options_of(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every field of these dataclasses, and one for a file of them all; and the command
    the dataclasses, made of them."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(**values: Any) -> None:
            del values["settings_file"]  # it was read before the options
            try:
                made = {
                    name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
                    for name, kind in groups.items()
                }
            except ValueError as wrong:
                raise typer.BadParameter(str(wrong)) from wrong
            command(**values, **made)

        own = [each for each in inspect.signature(command).parameters.values() if each.name not in groups]
        asked = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[field.type, typer.Option(help=field.metadata["help"])],
            )
            for kind in groups.values()
            for field in fields(kind)
        ]
        asked.append(
            inspect.Parameter("settings_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=SettingsFile)
        )
        called.__signature__ = inspect.Signature([*own, *asked])  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in (*own, *asked)}
        return called

    return decorate


@app.command()
def prepare(
    folder: Folder,
    table: Annotated[
        Path | None,
        typer.Option(
            help="NIH's Data_Entry CSV (2017 or v2020), or any CSV of image, patient, view and findings.",
            dir_okay=False,
        ),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="A folder, .zip, .tar or .tar.gz with the films; may be given again.")
    ] = None,
    lists: Annotated[
        Path | None, typer.Option(help="The folder of NIH's train_val_list.txt and test_list.txt.", file_okay=False)
    ] = None,
    size: Annotated[list[int] | None, typer.Option(help="Side of the inputs in pixels; may be given again.")] = None,
    processes: Annotated[int, typer.Option(help="Processes that decode; 0 is this one alone.", min=0)] = 0,
    keep_unknown_view: Annotated[bool, typer.Option(help="Keep the films of a CSV whose view is empty.")] = False,
    kaggle: Annotated[
        Path | None, typer.Option(help="Fetch NIH's set from Kaggle into this folder first (42 GB, needs a token).")
    ] = None,
) -> None:
    """Make a manifest and small inputs of films and their table.

    Interrupted, it goes on where it stopped.
    """
    from training import nih, prepared
    from training.manifest import ManifestError
    from training.sources import AmbiguousImage

    if kaggle is not None:
        images = [nih.fetch(kaggle)]
        table, lists = table or images[0] / "Data_Entry_2017.csv", lists or images[0]
    if table is None or not images:
        raise typer.BadParameter("give --table and --images, or --kaggle")
    try:
        manifest, left_out = nih.read_table(table, lists=lists, keep_unknown=keep_unknown_view)
        with _bar(total=len(manifest)) as advance:
            outcomes = prepared.prepare(
                manifest, images, folder, sizes=size or (224,), processes=processes, progress=advance
            )
    except FileNotFoundError as missing:
        where = missing.filename
        raise typer.BadParameter(str(missing) if where is None else f"No such file: {where}") from missing
    except (ManifestError, prepared.NotPrepared, AmbiguousImage) as wrong:
        raise typer.BadParameter(str(wrong)) from wrong
    typer.echo(f"{len(manifest):,} frontal films: " + ", ".join(f"{n:,} {what}" for what, n in outcomes.items()))
    if left_out:
        typer.echo(f"rows of {table} left out: " + ", ".join(f"{n:,} {why}" for why, n in left_out.most_common()))
    if set(outcomes) - {prepared.READY}:
        typer.echo(f"the others, one by one: {folder / 'bad_files.csv'}")
    if not set(outcomes) & set(prepared.KEPT):
        raise typer.BadParameter(
            f"none of the films in {table} can be used: do --images name the folder that holds them?"
        )


@app.command()
@_options_of(settings=Settings, selection=Selection)
def fit(
    folder: Folder,
    run: Run,
    *,
    size: Size = None,
    logger: Annotated[
        list[str] | None,
        typer.Option(help="mlflow or wandb: figures go there too, beside TensorBoard's files. May be given again."),
    ] = None,
    settings: Settings,
    selection: Selection,
) -> None:
    """Train one network.

    Interrupted, the same command goes on from the last whole epoch.
    """
    from training.fit import fit as train

    with usage_errors():
        films = _select(folder, size, selection, seed=settings.seed)
        split = selection.split if selection.lists is None else "lists"
        checkpoint = train(films, settings, run, code_commit=code_commit(), split=split, loggers=logger or ())
        _draw(run)
    _tell(checkpoint)


@app.command()
@_options_of(settings=Settings)
def crossfit(
    folder: Folder,
    run: Run,
    *,
    folds: Annotated[int, typer.Option(help="Networks that judge the recipe on patients they never saw.", min=2)] = 5,
    size: Size = None,
    settings: Settings,
) -> None:
    """Train on few films, judged by cross-validation over patients.

    The network that is kept is trained on all films and calibrated by the others.
    """
    from training.crossfit import cross_fit
    from training.evaluation import judge_crossfit

    with usage_errors():
        films = _open(folder, size)
        checkpoint = cross_fit(films, settings, run, folds=folds, code_commit=code_commit())
        _tell_macro(judge_crossfit(films, run, run))
    _tell(checkpoint)


@app.command()
def lungs(
    films: Annotated[Path, typer.Argument(help="The prepared folder of whole films.", file_okay=False)],
    alone: Annotated[Path, typer.Argument(help="The prepared folder of films of the lungs alone.", file_okay=False)],
    out: Annotated[Path, typer.Argument(help="The new checkpoint's file.", dir_okay=False)],
    *,
    start: Annotated[Path | None, typer.Option(help="File of ImageNet weights; else torchvision fetches them.")] = None,
    size: Size = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 2026,
) -> None:
    """Learn from films of the lungs alone, for a mobilenet_lungs.

    Patients that both folders have show where the lungs lie on whole films; findings are learned from the others.
    """
    from training.lungs import make_start

    with usage_errors():
        whole, of_lungs = _open(films, size), _open(alone, size)
        weights, commit = start or True, code_commit()
        dice = make_start(whole, of_lungs, out, weights=weights, seed=seed, code_commit=commit, tell=typer.echo)
    typer.echo(f"{out}: lungs found with a Dice coefficient of {dice:.3f} on films kept aside")


@app.command()
@_options_of(settings=Settings, selection=Selection)
def sweep(
    folder: Folder,
    run: Run,
    *,
    rate: Annotated[list[float] | None, typer.Option(help="A learning rate; may be given again.")] = None,
    size: Size = None,
    settings: Settings,
    selection: Selection,
) -> None:
    """Compare learning rates, each in a run of its own under RUN.

    1e-2, 1e-3, 1e-4 and 1e-5 when none is given.
    """
    from training.lr_sweep import PAPER_RATES
    from training.lr_sweep import sweep as compare

    with usage_errors():
        films = _select(folder, size, selection, seed=settings.seed)
        table = compare(films, settings, run, rates=rate or PAPER_RATES, code_commit=code_commit())
    typer.echo(table.to_string(index=False))


@app.command("at-site")
def at_site(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to move.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="The new checkpoint's file.", dir_okay=False)],
    *,
    prevalence: Annotated[
        list[str], typer.Option(metavar="FINDING=SHARE", help="Of the site's films, like Effusion=.12.")
    ],
) -> None:
    """Recalibrate a checkpoint for the shares of findings at a site.

    The ranks within a finding stay.
    """
    from training.calibration import header_at_site
    from training.checkpoint import load_checkpoint, save_checkpoint

    with usage_errors():
        loaded = load_checkpoint(checkpoint)
    try:
        site = {name: float(share) for name, _, share in (each.partition("=") for each in prevalence)}
        header = header_at_site(loaded.header, site)
    except (ValueError, KeyError) as wrong:
        raise typer.BadParameter(str(wrong)) from wrong
    typer.echo(f"{out}: digest {save_checkpoint(out, header, state=loaded.state)}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to judge.", dir_okay=False)],
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="Where the tables and the diagram go.", file_okay=False)],
    *,
    lists: Annotated[Path, typer.Option(help="Folder of the run's train.txt, validation.txt and test.txt.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    adjudicated: Annotated[
        Path | None, typer.Option(help="The radiologists' labels of NIH films, as a slice of their own.")
    ] = None,
) -> None:
    """Compute every figure of a checkpoint on films with labels.

    Intervals over patients, baselines, slices, reliability.
    """
    from training.checkpoint import read_header
    from training.evaluation import PREDICTIONS, judge_checkpoint
    from training.nih import read_adjudicated

    with usage_errors():
        size = read_header(checkpoint).preprocessing.size
        films = _select(folder, size, Selection(lists=lists), seed=0)
        second = None if adjudicated is None else read_adjudicated(adjudicated)
        _tell_macro(judge_checkpoint(checkpoint, films, out, split=split, adjudicated=second))
    _tell_first(out / PREDICTIONS)


@app.command()
def plot(
    run: Annotated[Path, typer.Argument(help="The folder of a run or of a sweep.", exists=True, file_okay=False)],
    *,
    films: Annotated[
        Path | None, typer.Option(help="The prepared folder: also draw its labels before and after sampling.")
    ] = None,
) -> None:
    """Draw the pictures of a run, over or still under way."""
    from training import plots
    from training.sampling import SPLITS, split_by_lists

    drawn = _draw(run)
    if (run / "sweep.csv").is_file():
        drawn.append(plots.save(plots.learning_rates(plots.read_sweep(run)), run / "learning_rates.png"))
    if films is not None:
        with usage_errors():
            manifest = _open(films, None).manifest
        split = split_by_lists(manifest, {name: run / f"{name}.txt" for name in SPLITS})["split"]
        free, learned = manifest[~split.isin(("validation", "test"))], manifest[split == "train"]
        figure = plots.label_distribution(free, learned, names=("outside validation and test", "trained on"))
        drawn.append(plots.save(figure, run / "labels.png"))
    typer.echo("\n".join(map(str, drawn)) or f"nothing to draw in {run} yet")


@app.command()
def explain(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint that looks.", dir_okay=False)],
    film: Annotated[Path, typer.Argument(help="A film: PNG, JPEG or DICOM.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="Where the pictures go.", file_okay=False)],
    *,
    filters: Annotated[bool, typer.Option(help="Also every filter of every layer, a picture per layer.")] = False,
    layer: Annotated[list[str] | None, typer.Option(help="Only the filters of this layer; may be given again.")] = None,
) -> None:
    """Draw where on one film the evidence for each finding lies.

    Also what each filter answers to, if asked for.
    """
    from training import explain
    from training.checkpoint import load_checkpoint
    from training.evaluation import predictions
    from training.imaging.dicom import UnusablePixels
    from training.prepared import pixels_of

    with usage_errors():
        loaded = load_checkpoint(checkpoint, findings=None)
        try:
            network_input = loaded.preprocessing.image(pixels_of(film.read_bytes()))
            written = explain.write_pictures(
                loaded,
                network_input,
                out,
                thresholds=loaded.cuts("flag_10"),
                layers=layer or (None if filters else ()),
            )
            written.append(predictions(loaded, network_input[None], [film.name], out))
        except (UnusablePixels, explain.NoFeatureMaps, explain.UnknownLayer) as wrong:
            raise typer.BadParameter(str(wrong)) from wrong
    _tell_first(written[-1])
    typer.echo("\n".join(map(str, written)))


def _open(folder: Path, size: int | None) -> "Prepared":
    from training.prepared import open_prepared

    return open_prepared(folder, size=size)


def _select(folder: Path, size: int | None, selection: Selection, *, seed: int) -> "Prepared":
    from training.selection import select

    films = _open(folder, size)

    def tell(count: int, reason: str) -> None:
        if count:
            typer.echo(f"{count:,} of {len(films.manifest):,} films left out: {reason}")

    return select(films, selection, seed=seed, on_left_out=tell)


def _draw(run: Path) -> list[Path]:
    """The paper's pictures of a run, beside its figures, if it has any on validation films."""
    import pandas as pd

    from training import plots

    written = run / "metrics.csv"
    epochs = pd.read_csv(written) if written.is_file() else pd.DataFrame()
    if "validation/auroc/macro" not in epochs:
        return []
    return [
        plots.save(plots.training_curves(epochs), run / "training_curves.png"),
        plots.save(plots.false_negatives(epochs), run / "false_negatives.png"),
    ]


def _tell(checkpoint: Path) -> None:
    from training.checkpoint import load_checkpoint

    typer.echo(f"{checkpoint}  sha256 {load_checkpoint(checkpoint, findings=None).digest}")


def _tell_macro(table: Any) -> None:
    """The macro AUROCs of the network and its baselines, over all films and within sources, with their intervals."""
    whole = table[(table["slice"] == "all") & table["metric"].str.startswith("auroc")]
    macro = whole[whole["finding"].str.startswith("macro")]
    typer.echo(macro[["model", "metric", "finding", "films", "value", "low", "high"]].to_string(index=False))


def _tell_first(predictions: Path) -> None:
    """Print the probabilities of the first film, as the paper lists them."""
    import pandas as pd

    film = pd.read_csv(predictions, nrows=1).iloc[0]
    typer.echo(f"\n{film['image']}, probability of each finding")
    for finding, probability in film.drop("image").items():
        typer.echo(f"  {finding:20s} {probability:.3f}")
    typer.echo(f"all films: {predictions}\n")


@contextmanager
def usage_errors() -> Iterator[None]:
    """Errors that the user can correct become one sentence and exit code 2; an internal error keeps its trace."""
    from training.checkpoint import CheckpointError
    from training.errors import TrainingFailed
    from training.networks import UnknownNetwork, WrongWeights

    try:
        yield
    except (CheckpointError, TrainingFailed, UnknownNetwork, WrongWeights) as wrong:
        raise typer.BadParameter(str(wrong)) from wrong


@contextmanager
def _bar(*, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of films on stderr; yields the function that advances it by N."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("films"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("films", total=total)
        yield lambda more: progress.advance(task, more)
