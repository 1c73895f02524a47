"""Options that several verbs share, and what is made of their values."""

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from service.settings import LISTS, METHODS, MOST_SIDE, OPTIONAL, SWITCHES, Settings
from service.settings_words import accepted, default, flag, no_flag, sections, variable
from ttc_core.files import check_regular
from ttc_core.interpolation import INTERPOLATIONS, Interpolation

# torch takes seconds to import: a verb imports what it needs, so that --help comes at once.
if TYPE_CHECKING:
    from ttc_core.methods import Method
    from ttc_core.model import Precision, SourceModel

BATCH_SIZE = 100
# No data set is as large: beyond, a number is a mistake, and no float either.
COUNT = click.IntRange(1, 10**9)
SEED = click.IntRange(0, 2**63 - 1)
FILE = click.Path(dir_okay=False, path_type=Path)

# Names of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST = 1 << 30

Command = TypeVar("Command", bound=Callable[..., Any])


class NotAccepted(click.ClickException):
    """What a flag, a variable or a file says is not accepted: exit status 2, the sentence alone.

    How the command is used would say nothing of it.
    """

    exit_code = 2


def several(
    value: str, known: tuple[str, ...], more: tuple[str, ...] = (), *, own: bool = False
) -> list[str]:
    """`all`, or names divided by commas; with `own` also package.module:Class."""
    names = [name.strip() for name in value.split(",") if name.strip()]
    names = [each for name in names for each in (known if name == "all" else (name,))]
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in (*known, *more) and not (own and ":" in name):
            raise click.UsageError(
                f"There is no {name!r}; there are all, {', '.join((*more, *known))}."
            )
    if not names:
        raise click.UsageError(f"Name at least one of {', '.join((*more, *known))}.")
    return names


def corruptions_of(value: str) -> list[str]:
    """`all`, names divided by commas, or `mixed` and the names that are mixed."""
    from ttc_core.corruptions import CORRUPTIONS
    from ttc_core.datasets import check_corruption

    first, _, rest = value.partition(",")
    if first.strip() != "mixed" and ":" not in first:
        return several(value, CORRUPTIONS, ("clean", "mixed"))
    name = first.strip()
    if rest.strip():
        name += ":" + "+".join(part.strip() for part in rest.split(","))
    try:
        check_corruption(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return [name]


def rgb(value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.UsageError(f"Three numbers as R,G,B are expected; got {value!r}.") from None
    return numbers


def pairs_of(settings: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise NotAccepted(f"--set takes METHOD.PARAM=VALUE; got {text!r}.")
        pairs[key.strip()] = value.strip()
    return pairs


def sets_nothing(pairs: Iterable[str], methods: Mapping[str, "Method"]) -> Iterator[str]:
    """Say of each METHOD.PARAM of `--set` that belongs to none of these methods, by name."""
    from ttc_core.guard import watching

    moving = {name for name, method in methods.items() if "moving" in method.settings}
    taken = (
        methods.keys() | {f"{name}.moving" for name in moving} | ({"moving"} if moving else set())
    )
    taken = taken.union(*map(watching, methods.values()))
    for key in pairs:
        if key.rpartition(".")[0] not in taken:
            yield f"--set {key} sets nothing here: what runs is {', '.join(methods)}."


def check_watched(pairs: Iterable[str], methods: Iterable["Method"]) -> None:
    """Refuse a setting of `--set` that is the guard's, where no method is watched."""
    from ttc_core.guard import mode_of

    first = next(iter(pairs), None)
    if first is not None and all(mode_of(method) == "off" for method in methods):
        raise click.UsageError(
            f"--set {first} sets what watches over adaptation, and that is off; leave it out, or "
            "say --guard on or --guard observe."
        )


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, for the next pass to use.

    Else it maps each large activation anew, and the system clears it page by page: half the time
    of a forward pass (LOG.md, Freed memory). One heap for all threads, as only that may grow so.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system than glibc's
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
        mallopt(M_ARENA_MAX, 1)


def load_model(
    spec: str,
    device: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    calibration: Path | None = None,
    *,
    size: int | None = None,
    crop: int | None = None,
    interpolation: Interpolation | None = None,
    class_names: Path | None = None,
    precision: "Precision" = "float32",
    trust_code: bool = False,
    warn: Callable[[str], None] = partial(click.echo, err=True),  # noqa: B008  it holds no state
) -> "SourceModel":
    from ttc_core.load import load, pick_device

    keep_freed_memory()
    model = load(
        spec,
        device=pick_device(device),
        mean=mean,
        std=std,
        size=size,
        crop=crop,
        interpolation=interpolation,
        class_names=class_names,
        precision=precision,
        calibration=calibration,
        trust_code=trust_code,
    )
    for notice in model.notices:
        warn(f"{spec}: {notice}")
    return model


def option(*names: str, **how: Any) -> Any:
    """A field of a dataclass that is an option of each command that takes it (`grouped`)."""
    return field(metadata={"parameter": click.option(*names, **how)})


def grouped(name: str, kind: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the parameters that are a dataclass's fields, as one."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_one(**given: Any) -> Any:
            given[name] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
            return command(**given)

        for each in reversed(fields(kind)):
            with_one = each.metadata["parameter"](with_one)
        return with_one

    return decorate


@dataclass(frozen=True)
class DataOptions:
    """What to read, and where results go: shared by replay and evaluate."""

    data: str = field(metadata={"parameter": click.argument("data")})
    corruptions: str | None = option(
        "--corruptions",
        help="all, or names divided by commas, clean too; mixed,A,B: one of those for each image; "
        "mixed: one of all [all]",
    )
    severity: int = option("--severity", type=click.IntRange(1, 5), default=5, show_default=True)
    batch_size: int | None = option(
        "--batch-size",
        type=COUNT,
        help=f"images [{BATCH_SIZE}; in replay's open loop and under time 1]",
    )
    limit: int | None = option("--limit", type=COUNT, help="take the first N of each corruption")
    seed: int = option("--seed", type=SEED, default=0, show_default=True)
    order: str = option(
        "--order",
        default="file",
        show_default=True,
        help="file, iid, sorted, dirichlet:D; or runs:L, one:CLASS, camera-trap, limited:M, where "
        "--limit is the stream's length",
    )
    rows_path: Path | None = option(  # noqa: RUF009  it makes a field
        *("--json", "rows_path"),
        metavar="ROWS",
        type=FILE,
        help="file of result rows, one JSON object a line",
    )
    predictions: Path | None = option(  # noqa: RUF009  it makes a field
        "--predictions",
        metavar="FILE.npz",
        type=FILE,
        help="keep what was answered to each image (one method, one corruption)",
    )

    def chosen(
        self, usual: Sequence[str] = ("all",), methods: int | None = None, *, joined: bool = False
    ) -> list[str]:
        """The corruptions, checked.

        Args:
            usual: those that are meant where none is named.
            methods: how many are to run; None: that is not for us to say.
            joined: all of them are of one stream.
        """
        asked = ",".join(usual) if self.corruptions is None else self.corruptions
        names = corruptions_of(asked)
        several = len(names) > 1 and not joined
        if self.predictions is not None and (methods not in (1, None) or several):
            one_method = "" if methods is None else "one method and "
            raise click.UsageError(f"--predictions goes with {one_method}one corruption.")
        return names


@dataclass(frozen=True)
class NetworkOptions:
    """What a network runs on, and its input."""

    device: str = option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N"
    )
    threads: int = option(
        "--threads", type=click.IntRange(0, 1024), default=0, help="torch's CPU threads"
    )
    mean: str | None = option("--mean", help="R,G,B mean of the model's input")
    std: str | None = option("--std", help="R,G,B deviation of the model's input")
    size: int | None = option(
        "--size",
        type=click.IntRange(1, MOST_SIDE),
        help="pixels to which images are resized: both sides, or with --crop the shorter",
    )
    crop: int | None = option(
        "--crop",
        type=click.IntRange(1, MOST_SIDE),
        help="pixels a side that are cut from the middle",
    )
    interpolation: Any = option(  # noqa: RUF009  it makes a field
        "--interpolation", type=click.Choice(INTERPOLATIONS), help="how images are resized"
    )
    class_names: Path | None = option(  # noqa: RUF009  it makes a field
        "--class-names", type=FILE, help="names of the classes, a line each, or JSON"
    )
    trust_code: bool = option(
        "--trust-code", is_flag=True, help="open torchscript@FILE or export@FILE, which hold code"
    )

    def load(self, spec: str, **more: Any) -> "SourceModel":
        """Load a model with the input that was asked for; see `load_model`."""
        return load_model(
            spec,
            self.device,
            rgb(self.mean),
            rgb(self.std),
            size=self.size,
            crop=self.crop,
            interpolation=self.interpolation,
            class_names=self.class_names,
            trust_code=self.trust_code,
            **more,
        )


@dataclass(frozen=True)
class ModelOptions(NetworkOptions):
    """The network of `evaluate`."""

    model: str = option("--model", default="bundled", show_default=True, help="as in ttc serve")
    calibration: Path | None = option(  # noqa: RUF009  it makes a field
        "--calibration", type=FILE, help="the model's calibration record [that beside its weights]"
    )
    precision: Any = option(  # noqa: RUF009  it makes a field
        "--precision",
        type=click.Choice(("float32", "bfloat16")),
        default="float32",
        show_default=True,
        help="what convolutions and linear layers compute in",
    )


class SettingsCommand(click.Command):
    """A command of `settings_options`, whose help has the settings by subject."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        lines = {}
        for each in self.get_params(context):
            if (line := each.get_help_record(context)) is not None:
                lines[each.name] = line
        found = {
            title: [
                lines.pop(key) for name in names for key in (name, f"no_{name}") if key in lines
            ]
            for title, names in sections().items()
        }
        for title, group in {"Options": [*lines.values()], **found}.items():
            with formatter.section(title):
                formatter.write_dl(group)


def settings_options(command: Command) -> Command:
    """A flag for each of the server's settings, from `Settings` itself."""
    for name, setting in reversed(Settings.model_fields.items()):
        usual = "" if default(name) in (None, (), "") else f"; default {default(name)}"
        bounds = "" if name in SWITCHES or _metavar(name)[0] == "[" else f"; {accepted(name)}"
        help_text = f"{setting.description} [{variable(name)}{bounds}{usual}]"
        no = no_flag(name)
        if name in SWITCHES:
            parameter = click.option(f"{flag(name)}/{no}", name, default=None, help=help_text)
        else:
            parameter = click.option(
                flag(name),
                name,
                multiple=name in LISTS,
                metavar=_metavar(name),
                help=help_text,
                shell_complete=partial(_suggested, name),
            )
        if name in OPTIONAL:
            command = click.option(
                no,
                f"no_{name}",
                is_flag=True,
                help=f"whatever {variable(name)} or the file says: none",
            )(command)
        command = parameter(command)
    return command


def chosen_settings(given: dict[str, Any]) -> dict[str, Any]:
    """What the flags of `settings_options` say; settings that none of them names are left out."""
    chosen = {name: given[name] for name in Settings.model_fields if given[name] not in (None, ())}
    for name in OPTIONAL:
        if given[f"no_{name}"]:
            if name in chosen:
                raise click.UsageError(f"{flag(name)} and {no_flag(name)} contradict.")
            chosen[name] = () if name in LISTS else None
    return chosen


def _metavar(name: str) -> str:
    """What a setting's value looks like, for the help; `Settings` itself checks it."""
    special = {
        "model": "SPEC",
        "method": "NAME",
        "set": "METHOD.PARAM=VALUE",
        "mean": "R,G,B",
        "std": "R,G,B",
        "config": "FILE",
        "state_dir": "DIR",
        "calibration": "FILE",
        "class_names": "FILE",
        "envelope": "FILE",
        "size": "PIXELS",
        "crop": "PIXELS",
        "interpolation": f"[{'|'.join(INTERPOLATIONS)}]",
        "silent_factor": "N",
    }
    kind = Settings.model_fields[name].annotation
    if get_origin(kind) is Literal:
        return f"[{'|'.join(get_args(kind))}]"
    # Every number that is not a count is a time.
    return special.get(name) or ("N" if kind is int else "SECONDS" if kind is float else "TEXT")


def _suggested(
    name: str, _: click.Context, __: click.Parameter, begun: str
) -> list[CompletionItem]:
    """What a shell may complete a setting's value to; without importing torch."""
    kind = Settings.model_fields[name].annotation
    if Path in (kind, *get_args(kind)):
        return [CompletionItem(begun, type="dir" if _metavar(name) == "DIR" else "file")]
    known = {"model": ("bundled",), "method": METHODS, "device": ("auto", "cpu", "cuda")}
    values = get_args(kind) if get_origin(kind) is Literal else known.get(name, ())
    return [CompletionItem(value) for value in values if value.startswith(begun)]


def check_writable(path: Path | None, rows: Path | None) -> None:
    """Refuse a file that could not be written in the end, before hours of work.

    Args:
        path: of the predictions.
        rows: the rows file, which has to be another.
    """
    if path is None:
        return
    if rows is not None and os.path.realpath(path) == os.path.realpath(rows):
        raise click.UsageError(f"--json and --predictions both name {path}; they are two files.")
    try:
        check_regular(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise click.ClickException(
            f"{path} cannot be written: {error.strerror or error}."
        ) from error
