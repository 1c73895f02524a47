"""Every setting of the server, once: flag, TTC_ variable, default, bounds, help."""

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# Pillow refuses more by itself, with a limit of its own in the message.
MOST_PIXELS = 178_956_970
# Beyond these no setting means anything, and arithmetic or a timer would fail.
MOST, MOST_BYTES, MOST_THREADS, DAY = 1_000_000, 1 << 40, 1024, 86_400
MOST_IDS = 10_000_000
FEWEST_TOKEN_CHARACTERS = 8
# Half of what a request's line and headers may have together.
MOST_TOKEN_BYTES = 32 << 10
# Of a refused value, in its sentence.
MOST_CHARACTERS = 200
_ORIGIN = re.compile(r"(?i)https?://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
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


def _usual_guard(given: dict[str, Any]) -> Literal["on", "off", "observe"]:
    """As `ttc_core.guard.default_mode` has it, which would import torch."""
    is_default = given.get("method", "ttc_stream") == "ttc_stream" and not given.get("paper")
    return "on" if is_default else "off"


class Settings(BaseSettings):
    """What `ttc serve` takes. A flag goes before its TTC_ variable, that before the default."""

    model_config = SettingsConfigDict(
        env_prefix="TTC_", frozen=True, extra="ignore", allow_inf_nan=False
    )

    model: Annotated[str, Accepted("a model's spec")] = Field(
        "bundled",
        min_length=1,
        description="bundled, torchvision/NAME, timm/NAME, cifar/NAME@FILE, module:factory",
    )
    set: Annotated[tuple[str, ...], NoDecode, Accepted("METHOD.PARAM=VALUE")] = Field(
        (), description="a hyperparameter of the method; may be repeated"
    )
    paper: bool = Field(
        False, description="as the paper has it: batch statistics; TTC where no method is named"
    )
    # Behind `paper`, which its default follows from.
    method: Annotated[str, Accepted("a name, or package.module:Class")] = Field(
        default_factory=lambda given: "ttc" if given.get("paper") else "ttc_stream",
        min_length=1,
        description="ttc_stream, source, norm, t3a, eta, tipi, tent, ttc, or a class",
    )
    guard: Literal["on", "off", "observe"] = Field(
        default_factory=_usual_guard,
        description="keep a faulty camera's frames out of what is learned, and let the source "
        "answer while adapting does harm; or only tell both; on with ttc_stream",
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
    host: Annotated[str, Accepted("a name or an address")] = Field(
        "127.0.0.1", min_length=1, description="address to listen on"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
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
        False, description="/status, /snapshots and /metrics ask for one of the tokens too"
    )
    state_dir: Annotated[Path | None, Accepted("a folder; it is made")] = Field(
        None, description="where streams are saved, and come back from when asked for; ids too"
    )
    save_interval: float = Field(
        60.0, ge=0.1, le=DAY, description="seconds after which a stream that has changed is saved"
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
    cors_origin: Annotated[
        tuple[str, ...],
        NoDecode,
        Accepted("http://HOST or https://HOST, with :PORT where it has one"),
    ] = Field((), description="web origin that may call from a browser; may be repeated")

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):  # as pydantic writes a list in a variable
            text = text[1:-1]
        return tuple(text.split(","))

    @field_validator("set", "cors_origin", mode="before")
    @classmethod
    def _split_at_spaces(cls, value: object) -> object:
        if isinstance(value, tuple):  # of a flag that was given several times, or once for none
            return tuple(text for text in value if text)
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("state_dir", "calibration", mode="before")
    @classmethod
    def _has_a_name(cls, value: object) -> object:
        if value == "":
            raise ValueError("a name is expected")
        return value

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
        if value and not (info.data.get("token") or info.data.get("admin_token")):
            raise ValueError("it needs --token or --admin-token")
        return value

    @field_validator("cors_origin")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("an origin is like https://cameras.example:8443")
            urlsplit(origin)  # raises where brackets hold no address
        return tuple(map(plain_origin, origins))

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
    bounds: dict[str, Any] = {
        sign: getattr(each, sign)
        for each in field.metadata
        for sign in ("ge", "gt", "le")
        if hasattr(each, sign)
    }
    lowest = f"{bounds['ge']:.15g}" if "ge" in bounds else f"above {bounds['gt']:.15g}"
    return f"{lowest} to {bounds['le']:.15g}"


def default(name: str) -> Any:
    """What holds where nothing else is said."""
    return Settings.model_fields[name].get_default(call_default_factory=True, validated_data={})


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return f"--{name.replace('_', '-')}"


def read_settings(given: dict[str, object]) -> Settings:
    """Combine flags, TTC_ variables and defaults.

    Raises:
        ValueError: a value is not accepted; the sentence names the flag.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        said = first["msg"].removeprefix("Value error, ")
        # Not even a wrong secret is shown.
        came = "" if name in SECRETS else f"; got {repr(first['input'])[:MOST_CHARACTERS]}"
        raise ValueError(f"{flag(name)} (or TTC_{name.upper()}): {said}{came}.") from None


def unknown_variables() -> dict[str, str | None]:
    """The TTC_ variables that set nothing, each with the one that it may be meant to be."""
    known = [f"TTC_{name.upper()}" for name in Settings.model_fields]
    unknown = {}
    for name in sorted(os.environ):
        upper = name.upper()
        if upper.startswith("TTC_") and upper not in known and not _OF_KUBERNETES.match(upper):
            close = get_close_matches(upper, known, 1, cutoff=0.8)
            unknown[name] = close[0] if close else None
    return unknown
