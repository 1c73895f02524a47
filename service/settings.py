"""Every setting of the server, once: flag, TTC_ variable, name in a file, default, bounds, help."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

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
# As `ttc_core.methods.METHODS` has them, which would import torch; the default is first.
METHODS = ("ttc_stream", "source", "norm", "t3a", "eta", "tipi", "tent", "ttc")
_ORIGIN = re.compile(r"(?i)https?://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_REPLICAS = re.compile(r"([0-9]{1,4})(?::([0-9]{1,4}))?")


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
    """What `ttc serve` takes, once it is read (`settings_reading`)."""

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
        # Here and below: one that is not there is wrong, and told by itself.
        size, model = info.data.get("size"), info.data.get("model", "")
        if value is None or "size" not in info.data:
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
        if value and tokens == [None, None]:
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
