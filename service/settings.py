"""Every setting of the server, once: flag, TTC_ variable, name in a file, default, bounds, help."""

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.settings_file import everyone_may_read, read_toml
from ttc_core.accepted import FOLLOWS, OUR_OWN, bounds, what_is, written
from ttc_core.errors import shown
from ttc_core.interpolation import INTERPOLATIONS, Interpolation

# Pillow refuses more by itself, with a limit of its own in the message.
MOST_PIXELS = 178_956_970
# Beyond these no setting means anything, and arithmetic or a timer would fail.
MOST, MOST_BYTES, MOST_THREADS, DAY = 1_000_000, 1 << 40, 1024, 86_400
MOST_IDS = 10_000_000
MOST_REPLICAS = 1000
# The pixels a side that a model may read.
MOST_SIDE = 8192
FEWEST_TOKEN_CHARACTERS = 8
# Half of what a request's line and headers may have together.
MOST_TOKEN_BYTES = 32 << 10
# Of a refused value, in its sentence.
MOST_CHARACTERS = 200
# Of unknown names, those that are told at once.
MOST_UNKNOWN = 10
# As `ttc_core.methods.METHODS` has them, which would import torch; the default is first.
METHODS = ("ttc_stream", "source", "norm", "t3a", "eta", "tipi", "tent", "ttc")
_ORIGIN = re.compile(r"(?i)https?://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_REPLICAS = re.compile(r"([0-9]{1,4})(?::([0-9]{1,4}))?")
# What it sets beside a Service named ttc.
_OF_KUBERNETES = re.compile(r"TTC_(SERVICE_(HOST|PORT)|PORT_[0-9]+_)")


@dataclass(frozen=True)
class Accepted:
    """What a setting takes, where neither its bounds nor its choices say it."""

    words: str


Token = Annotated[
    SecretStr | None,
    Accepted(
        f"{FEWEST_TOKEN_CHARACTERS} characters to {MOST_TOKEN_BYTES} bytes, no control characters, "
        "no spaces around it"
    ),
]


def plain_origin(origin: str) -> str:
    """An origin as a browser writes it: in small letters, without the port of its scheme."""
    origin = origin.lower()
    port = {"http": ":80", "https": ":443"}.get(origin.partition(":")[0], "")
    return origin.removesuffix(port) if port else origin


def usual_method(model: str, *, paper: bool = False) -> str:
    """The method where none is named: a program of a file of its own cannot adapt."""
    if paper:
        return "ttc"
    return "source" if model.startswith(("torchscript@", "export@")) else "ttc_stream"


def _states_no_size(model: str) -> bool:
    """Whether a model's spec is of a kind that comes without a size of its images."""
    name = model.partition("@")[0]
    return name == "torchscript" or (":" in name and not name.startswith("timm/"))


def _usual_guard(given: dict[str, Any]) -> Literal["on", "off", "observe"]:
    """As `ttc_core.guard.default_mode` has it, which would import torch."""
    is_default = given.get("method", "ttc_stream") == "ttc_stream" and not given.get("paper")
    return "on" if is_default else "off"


class Settings(BaseSettings):
    """What `ttc serve` takes, once it is read (`read`)."""

    model_config = SettingsConfigDict(
        env_prefix="TTC_", frozen=True, extra="ignore", allow_inf_nan=False
    )

    config: Annotated[Path | None, Accepted("a TOML file")] = Field(
        None,
        description="file of settings by their names, max_batch = 8; flags and TTC_ variables go "
        "before it; ttc config --toml writes one",
    )
    model: Annotated[str, Accepted("a model's spec")] = Field(
        "bundled",
        min_length=1,
        description="bundled, torchvision/NAME[@FILE], timm/NAME[@FILE], cifar/NAME@FILE, "
        "module:factory[@FILE], torchscript@FILE, export@FILE",
    )
    class_names: Annotated[Path | None, Accepted("a file")] = Field(
        None,
        description="names of the classes: one a line, or JSON: a list, {index: name}, "
        "{name: index}; else those of the weights",
    )
    size: int | None = Field(
        None,
        ge=1,
        le=MOST_SIDE,
        description="pixels to which images are resized: both sides, or with --crop the shorter; "
        "else as the weights say",
    )
    crop: int | None = Field(
        None, ge=1, le=MOST_SIDE, description="pixels a side that are cut from the middle"
    )
    interpolation: Annotated[Interpolation | None, Accepted(", ".join(INTERPOLATIONS))] = Field(
        None, description="how images are resized: as the model was trained"
    )
    trust_code: bool = Field(
        False,
        description="open a model of torchscript@FILE or export@FILE, which holds code that then "
        "runs with your rights",
    )
    set: Annotated[tuple[str, ...], NoDecode, Accepted("METHOD.PARAM=VALUE")] = Field(
        (), description="a hyperparameter of the method; may be repeated"
    )
    paper: bool = Field(
        False, description="as the paper has it: batch statistics; TTC where no method is named"
    )
    # Behind `paper`, which its default follows from.
    method: Annotated[str, Accepted("a name, or package.module:Class")] = Field(
        default_factory=lambda given: usual_method(
            given.get("model", "bundled"), paper=bool(given.get("paper"))
        ),
        min_length=1,
        description=f"{', '.join(METHODS)}, or a class",
    )
    guard: Literal["on", "off", "observe"] = Field(
        default_factory=_usual_guard,
        description="keep a faulty camera's frames out of what is learned, and let the source "
        "answer while adapting does harm; or only tell both; on with ttc_stream",
    )
    envelope: Annotated[Path | None, Accepted("a TOML file; not with --paper")] = Field(
        None,
        description="file of clauses: what adaptation may change, and how far; the built-in ones "
        "where it says nothing (ttc envelope show), none with --paper",
    )
    mean: Annotated[tuple[float, ...] | None, NoDecode, Accepted("R,G,B: three numbers")] = Field(
        None, description="mean of the model's input, values in [0, 1]"
    )
    std: Annotated[tuple[float, ...] | None, NoDecode, Accepted("R,G,B: three numbers above 0")] = (
        Field(None, description="deviation of the model's input")
    )
    calibration: Annotated[Path | None, Accepted("a file")] = Field(
        None, description="the model's calibration record, where it does not lie beside the weights"
    )
    max_batch: int = Field(100, ge=1, le=4096, description="images per forward pass")
    max_wait: float = Field(
        0.0, ge=0, le=60, description="seconds the oldest image waits for company on a free device"
    )
    # Behind `paper`: what is measured against the paper is to be exact.
    adapt: Literal["auto", "on-shift", "always", "idle", "never"] = Field(
        default_factory=lambda given: "always" if given.get("paper") else "auto",
        description="learn from every batch while the queue does not stand (auto), likewise but "
        "only while the stream differs from what was last learned (on-shift), from every, from "
        "those with none waiting (idle), or from none; moving statistics follow the images with "
        "each; always with --paper",
    )
    shed_after: float = Field(
        0.5,
        ge=0.01,
        le=DAY,
        description="seconds that a request may wait while two batches go before it: then --adapt "
        "auto sheds learning, at twice as long the second view",
    )
    host: Annotated[str, Accepted("a name or an address")] = Field(
        "127.0.0.1", min_length=1, description="address to listen on"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    root_path: Annotated[str | None, Accepted("a path, like /cameras")] = Field(
        None,
        description="path under which a proxy has the service, whether it takes that off or not",
    )
    device: Annotated[str, Accepted("auto, cpu, cuda, cuda:N")] = Field(
        "auto", min_length=1, description="auto, cpu, cuda or cuda:N"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="what convolutions and linear layers compute in: bfloat16 is faster where the "
        "device has units for it (ttc doctor says), and rounds answers; what lasts is float32",
    )
    threads: int = Field(
        0, ge=0, le=MOST_THREADS, description="torch's CPU threads; 0: torch's own choice"
    )
    token: Token = Field(None, description="bearer token that whatever is posted then asks for")
    admin_token: Token = Field(
        None,
        description="bearer token that /reset, /rollback and /model ask for instead of --token",
    )
    token_reads: Annotated[bool, Accepted("on, off; on with a token only")] = Field(
        False,
        description="/status, /snapshots, /events, /metrics and /v2's statistics ask for a token "
        "too",
    )
    cors_origin: Annotated[
        tuple[str, ...],
        NoDecode,
        Accepted("http://HOST or https://HOST, with :PORT where it has one"),
    ] = Field((), description="web origin that may call from a browser; may be repeated")
    state_dir: Annotated[Path | None, Accepted("a folder; it is made")] = Field(
        None, description="where streams are saved, and come back from when asked for; ids too"
    )
    save_interval: float = Field(
        60.0, ge=0.1, le=DAY, description="seconds after which a stream that has changed is saved"
    )
    changes_bytes: int = Field(
        64 << 20,
        ge=64 << 10,
        le=MOST_BYTES,
        description="bytes of a file of the log of changes in --state-dir; then the next goes on",
    )
    changes_files: int = Field(
        32, ge=2, le=MOST, description="files of it that are kept; then the oldest goes"
    )
    feedback_ids: int = Field(
        1_000_000, ge=1, le=MOST_IDS, description="answers that a later label may name by their id"
    )
    silent_factor: float = Field(
        3.0, ge=1, le=1000, description="times its longest pause of late: then a stream is silent"
    )
    silent_seconds: float = Field(
        60.0, ge=1, le=DAY, description="seconds without a request before a stream can be silent"
    )
    max_streams: int = Field(1000, ge=1, le=MOST, description="streams in memory that adapt apart")
    max_stream_bytes: int = Field(
        2 << 30, ge=1, le=MOST_BYTES, description="bytes of their states in memory"
    )
    stream_expiry: float = Field(
        3600.0, gt=0, le=1e9, description="idle seconds after which an unsaved stream makes room"
    )
    max_connections: int = Field(1000, ge=1, le=MOST, description="open connections")
    max_queue: int = Field(1000, ge=1, le=MOST, description="images that may wait")
    max_queue_bytes: int = Field(
        512 << 20,
        ge=1,
        le=MOST_BYTES,
        description="bytes of memory for requests and for decoding them",
    )
    max_body: int = Field(32 << 20, ge=1, le=MOST_BYTES, description="bytes of one request")
    max_image_bytes: int = Field(10 << 20, ge=1, le=MOST_BYTES, description="bytes of one image")
    max_images: int = Field(1000, ge=1, le=MOST, description="images of one request")
    max_pixels: int = Field(16_000_000, ge=1, le=MOST_PIXELS, description="pixels of one image")
    max_side: int = Field(8192, ge=1, le=MOST, description="pixels along one side of an image")
    decode_threads: int = Field(
        2, ge=1, le=64, description="threads that decode images; as many more for large requests"
    )
    receive_timeout: float = Field(
        30.0, ge=0.1, le=DAY, description="seconds for a request to arrive whole"
    )
    drain_delay: float = Field(
        0.0,
        ge=0,
        le=DAY,
        description="seconds between SIGTERM and refusing work, for load balancers",
    )
    drain_timeout: float = Field(
        30.0, ge=0.1, le=DAY, description="seconds to end in after SIGTERM"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="log lines to read, or one JSON object a line"
    )
    traces: bool = Field(
        False, description="send OpenTelemetry spans to where the OTEL_ variables say; extra otel"
    )

    ray: bool = Field(
        False,
        description="have replicas of the service answer, which Ray runs on this machine, or on "
        "those of the cluster that RAY_ADDRESS names; extra ray",
    )
    ray_replicas: Annotated[str, Accepted("N, or MIN:MAX, 1 to 1000")] = Field(
        "2", description="how many: as many, or by the load"
    )
    ray_queue: int = Field(
        16,
        ge=1,
        le=MOST,
        description="requests of a replica, waiting or at work, above which there are to be more",
    )
    ray_patience: float = Field(
        10.0,
        ge=0.1,
        le=DAY,
        description="seconds that they have to be above it before a replica is added; ten times as "
        "many below it before one goes",
    )

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):  # as pydantic writes a list in a variable
            text = text[1:-1]
        return tuple(text.split(","))

    @field_validator("crop")
    @classmethod
    def _is_within_the_size(cls, value: int | None, info: ValidationInfo) -> int | None:
        size, model = info.data.get("size"), str(info.data.get("model"))
        if value is None or "size" not in info.data:  # a size that is wrong is told by itself
            return value
        if size is not None and value > size:
            raise ValueError(
                f"at most --size, the shorter side before it is cut, is expected: {size}"
            )
        if size is None and _states_no_size(model):
            raise ValueError("it needs --size, the shorter side before it is cut")
        return value

    @field_validator("set", "cors_origin", mode="before")
    @classmethod
    def _split_at_spaces(cls, value: object) -> object:
        if isinstance(value, tuple):  # of a flag that was given several times, or once for none
            return tuple(text for text in value if text)
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("config", "state_dir", "calibration", "class_names", "envelope", mode="before")
    @classmethod
    def _has_a_name(cls, value: object) -> object:
        if value == "":
            raise ValueError("a name is expected")
        return value

    @field_validator("envelope")
    @classmethod
    def _is_not_the_papers(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("paper"):
            raise ValueError("with --paper no envelope holds; leave one of the two out")
        return value

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        path = (value or "").rstrip("/")
        if path and not _PATH.fullmatch(path):
            raise ValueError("a path of letters, digits, . _ ~ - is expected, like /cameras")
        return path or None

    @field_validator("port", mode="before")
    @classmethod
    def _is_not_kubernetes(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError(
                "a number is expected; Kubernetes sets TTC_PORT beside a Service named ttc: "
                "say --port, or enableServiceLinks: false in the pod"
            )
        return value

    @field_validator("token", "admin_token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value()
        if len(text) < FEWEST_TOKEN_CHARACTERS:
            raise ValueError(f"at least {FEWEST_TOKEN_CHARACTERS} characters are expected")
        if len(text.encode(errors="replace")) > MOST_TOKEN_BYTES:
            raise ValueError(f"at most {MOST_TOKEN_BYTES:,} bytes are expected")
        if text != text.strip() or any(ord(each) < 32 or ord(each) == 127 for each in text):
            raise ValueError("no line ends, control characters or spaces around it are accepted")
        return value

    @field_validator("token_reads")
    @classmethod
    def _has_a_token(cls, value: bool, info: ValidationInfo) -> bool:
        tokens = [info.data.get(name, "") for name in ("token", "admin_token")]
        if value and tokens == [None, None]:  # one that is wrong is told by itself
            raise ValueError("it needs --token or --admin-token")
        return value

    @field_validator("cors_origin")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            with contextlib.suppress(ValueError):
                urlsplit(origin)  # raises where brackets hold no address
                if _ORIGIN.fullmatch(origin):
                    continue
            raise ValueError("an origin is like https://cameras.example:8443")
        return tuple(map(plain_origin, origins))

    @field_validator("ray")
    @classmethod
    def _has_a_folder(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("state_dir", "") is None:
            raise ValueError("it needs --state-dir, through which streams move between replicas")
        return value

    @field_validator("ray_replicas")
    @classmethod
    def _are_counts(cls, value: str) -> str:
        found = _REPLICAS.fullmatch(value.strip())
        if found is None:
            raise ValueError("a number of replicas is expected, or MIN:MAX, like 1:4")
        fewest, most = int(found[1]), int(found[2] or found[1])
        if not 1 <= fewest <= most <= MOST_REPLICAS:
            raise ValueError(f"1 to {MOST_REPLICAS} are expected, the lower number first")
        return value.strip()

    @property
    def replicas(self) -> tuple[int, int]:
        """How many replicas there are at least, and at most."""
        fewest, _, most = self.ray_replicas.partition(":")
        return int(fewest), int(most or fewest)

    @property
    def statistics(self) -> str | None:
        """Where BatchNorm statistics come from unless --set says so; None: as in the paper."""
        return None if self.paper else "moving"


SECRETS = frozenset({"token", "admin_token"})
"""The settings whose values are shown nowhere."""
SWITCHES = frozenset(
    name for name, field in Settings.model_fields.items() if field.annotation is bool
)
"""The settings that are on or off."""
LISTS = frozenset({"set", "cors_origin"})
"""The settings that may be given several times."""
OPTIONAL = LISTS | {
    name
    for name, field in Settings.model_fields.items()
    if field.default is None and type(None) in get_args(field.annotation)
}
"""The settings that may have no value."""


# What defaults follow from that are made when the settings are read.
_FOLLOWED: Mapping[str, tuple[str, ...]] = {
    "method": ("model", "paper"),
    "guard": ("paper", "method"),
    "adapt": ("paper",),
}
# The first setting of each subject.
_SECTIONS = {
    "config": "Settings file",
    "model": "Model and method",
    "max_batch": "Batches and learning",
    "host": "Address",
    "device": "Device",
    "token": "Who may ask",
    "state_dir": "What is kept",
    "silent_factor": "Streams",
    "max_connections": "Requests",
    "drain_delay": "Operation",
    "ray": "Replicas",
}


def accepted(name: str) -> str:
    """The values that a setting takes, in words."""
    field = Settings.model_fields[name]
    for each in field.metadata:
        if isinstance(each, Accepted):
            return each.words
    if name in SWITCHES:
        return "on, off"
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    found = bounds(field.metadata)
    lowest = f"{found['ge']:.15g}" if "ge" in found else f"above {found['gt']:.15g}"
    return f"{lowest} to {found['le']:.15g}"


def accepted_in_file(name: str) -> str:
    """The values that a setting takes in a file, in words: TOML has words of its own for two."""
    return accepted(name).replace("on, off", "true, false") if name in SWITCHES else accepted(name)


def default(name: str) -> Any:
    """What holds where nothing else is said."""
    return Settings.model_fields[name].get_default(call_default_factory=True, validated_data={})


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return f"--{name.replace('_', '-')}"


def no_flag(name: str) -> str:
    """The flag that unsets a setting, or turns it off."""
    return f"--no-{name.replace('_', '-')}"


def variable(name: str) -> str:
    """The variable of a setting."""
    return f"TTC_{name.upper()}"


def sections() -> dict[str, list[str]]:
    """The settings' names by subject, in their order."""
    found: dict[str, list[str]] = {}
    title = ""
    for name in Settings.model_fields:
        title = _SECTIONS.get(name, title)
        found.setdefault(title, []).append(name)
    return found


@dataclass(frozen=True)
class Origin:
    """Where a setting's value comes from.

    Attributes:
        kind: of the four, the first that says anything counts.
        name: of the flag, the variable, the file; of a default the settings that it follows from,
            where they have it differ from the usual one, as `paper, method`; else None.
    """

    kind: Literal["flag", "variable", "file", "default"]
    name: str | None = None

    def __str__(self) -> str:
        if self.kind == "default":
            return f"default, by {self.name}" if self.name else "default"
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Reading:
    """Settings, where each of them comes from, and what to beware of in that."""

    settings: Settings
    origins: Mapping[str, Origin]
    notices: tuple[str, ...]


def read(given: Mapping[str, Any]) -> Reading:
    """Combine flags, TTC_ variables, a file and defaults: the first that says anything counts.

    Args:
        given: what flags say, by the settings' names; `config` may be among them.

    Raises:
        ValueError: values are not accepted, or the file cannot be read; a sentence for each, in a
            line of its own, names the flag and the variable, or the file and the name in it.
    """
    outside = {name.upper(): value for name, value in os.environ.items()}
    path = given["config"] if "config" in given else outside.get(variable("config"))
    try:
        said, wrong = _in_file(Path(path)) if path else ({}, [])
    except RecursionError:
        raise ValueError(f"{shown(path)} is nested too deeply.") from None
    of_variables = {name for name in Settings.model_fields if variable(name) in outside}
    of_file = {name: said[name] for name in said if name not in of_variables | given.keys()}
    try:
        settings = Settings(**of_file, **given)
    except ValidationError as error:
        for name, first in _first_of_each(error):
            # What goes with another may be wrong only since that one is.
            if not (wrong and first["type"] == OUR_OWN):
                where = f"{flag(name)} (or {variable(name)})"
                where = f"{shown(path)}: {name}" if name in of_file else where
                wrong.append(_refusal(where, name, first, in_file=name in of_file))
    if wrong:
        raise ValueError("\n".join(wrong))
    origins = {}
    for name in Settings.model_fields:
        if name in given:
            is_none = given[name] is None or given[name] is False or given[name] == ()
            origins[name] = Origin("flag", no_flag(name) if is_none else flag(name))
        elif name in of_variables:
            origins[name] = Origin("variable", variable(name))
        elif name in of_file:
            origins[name] = Origin("file", str(path))
        else:
            origins[name] = Origin("default", _followed(settings, name))
    return Reading(settings, origins, tuple(_notices(path, said)))


def _first_of_each(error: ValidationError) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings that are wrong, and what is first wrong with each."""
    found: dict[str, Mapping[str, Any]] = {}
    for each in error.errors():
        if each["type"] != FOLLOWS:
            found.setdefault(str(each["loc"][0]), each)
    yield from found.items()


def _in_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What a file says, by the settings' names, and sentences on what is wrong and left out;
    bounds are left to `Settings`."""
    said, right, wrong = read_toml(path), dict[str, Any](), list[str]()
    unknown = said.keys() - (Settings.model_fields.keys() - {"config"})
    wrong += [_unknown(path, name, said[name]) for name in sorted(unknown)[:MOST_UNKNOWN]]
    if isinstance(said.get("set"), dict):
        try:
            said["set"] = _of_table(path, said["set"])
        except ValueError as error:
            wrong.append(str(error))
            del said["set"]
    for name in (name for name in said if name not in unknown):
        value = said[name]
        # JSON has lists where we have tuples, and texts where we have paths; else its kinds are
        # TOML's. No setting is a date, or takes an object.
        text = json.dumps(value, default=lambda _: {})
        try:
            kind: Any = Settings.model_fields[name].annotation
            TypeAdapter(kind).validate_json(text, strict=True)
        except ValidationError:
            what = {"type": "kind", "input": value}
            wrong.append(_refusal(f"{shown(path)}: {name}", name, what, in_file=True))
        else:
            right[name] = tuple(value) if isinstance(value, list) else value
    return right, wrong


def _of_table(path: Path, table: Mapping[str, Any]) -> list[str]:
    """A table [set] as `--set` has it.

    Raises:
        ValueError: it is none of hyperparameters, or one is there twice.
    """
    pairs = list(_pairs(path, table))
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{shown(path)}: {shown(key)} of [set] is there twice.")
    return [f"{key}={value}" for key, value in pairs]


def _unknown(path: Path, name: str, value: object) -> str:
    if name == "config":
        return f"{shown(path)}: config is no setting of a file; none names another."
    if isinstance(value, dict):
        return f"{shown(path)}: there is no table [{shown(name)}]; [set] is the only one."
    plain = name.lower().replace("-", "_").removeprefix("ttc_")
    close = get_close_matches(plain, Settings.model_fields, 1, cutoff=0.8)
    hint = f"is {close[0]} meant?" if close else "ttc config shows all."
    return f"{shown(path)}: there is no setting {shown(name)}; {hint}"


def _pairs(path: Path, table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, object]]:
    """METHOD.PARAM and value of a table [set]: "ttc.lr" = 1 and ttc.lr = 1 are the same."""
    for name, value in table.items():
        key = before + name
        if isinstance(value, dict):
            yield from _pairs(path, value, f"{key}.")
        elif "." not in key:
            hint = "; settings stand above [set]" if key in Settings.model_fields else ""
            raise ValueError(
                f"{shown(path)}: [set] takes METHOD.PARAM = VALUE; got {shown(key)}{hint}."
            )
        elif isinstance(value, str | int | float):
            yield key, value
        else:
            raise ValueError(
                f"{shown(path)}: {shown(key)} of [set] takes a text, a number, true or false; "
                f"got {shown(value)}."
            )


def _refusal(where: str, name: str, error: Mapping[str, Any], *, in_file: bool) -> str:
    """Say what is wrong with a setting.

    Args:
        where: it is set; error: as pydantic tells it.
        in_file: it is there, where a text has quotes.
    """
    # Not even a wrong secret is shown.
    came = "" if name in SECRETS else f"; got {written(error['input'])[:MOST_CHARACTERS]}"
    if error["type"] != OUR_OWN:
        return f"{where} takes {_takes(name, in_file=in_file)}{came}."
    # That a switch is on is what it says.
    return f"{where}: {what_is(error, '')}{'' if name in SWITCHES else came}."


def _takes(name: str, *, in_file: bool) -> str:
    """The values that a setting takes, with their kind, in words."""
    annotation = Settings.model_fields[name].annotation
    kinds = {annotation, *get_args(annotation)}
    if int in kinds:
        return f"a whole number, {accepted(name)}"
    if float in kinds and get_origin(annotation) is not tuple:
        return f"a number, {accepted(name)}"
    if name in SWITCHES or not in_file:
        return accepted_in_file(name) if in_file else accepted(name)
    is_list = any(get_origin(each) is tuple for each in kinds)
    return f"{'a list' if is_list else 'a text in quotes'} ({accepted(name)})"


def _followed(settings: Settings, name: str) -> str | None:
    """The settings that have a default differ from the usual one, each by itself; None: none."""
    value, field = getattr(settings, name), Settings.model_fields[name]
    if value == default(name):
        return None
    followed = (
        each
        for each in _FOLLOWED.get(name, ())
        if value
        == field.get_default(
            call_default_factory=True, validated_data={each: getattr(settings, each)}
        )
    )
    return ", ".join(followed) or None


def _notices(path: object, said: Mapping[str, Any]) -> Iterator[str]:
    if SECRETS & said.keys() and everyone_may_read(Path(str(path))):
        yield (
            f"{shown(path)} has a token in it, and every user of this machine may read it: "
            f"chmod o-r {shown(path)}"
        )
    for name, meant in unknown_variables().items():
        yield f"{name} sets nothing here" + (f"; is {meant} meant?" if meant else ".")


def read_settings(given: Mapping[str, Any]) -> Settings:
    """The settings of `read`."""
    return read(given).settings


def unknown_variables() -> dict[str, str | None]:
    """The TTC_ variables that set nothing, each with the one that it may be meant to be."""
    known = [variable(name) for name in Settings.model_fields]
    unknown = {}
    for name in sorted(os.environ):
        upper = name.upper()
        if upper.startswith("TTC_") and upper not in known and not _OF_KUBERNETES.match(upper):
            close = get_close_matches(upper, known, 1, cutoff=0.8)
            unknown[name] = close[0] if close else None
    return unknown
