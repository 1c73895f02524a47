"""Every setting of the server, once: flag, TTC_ variable, default, bounds, help."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# Pillow refuses more by itself, with a limit of its own in the message.
MOST_PIXELS = 178_956_970


class Settings(BaseSettings):
    """What `ttc serve` takes. A flag goes before its TTC_ variable, that before the default."""

    model_config = SettingsConfigDict(env_prefix="TTC_", frozen=True, extra="ignore")

    model: str = Field(
        "bundled",
        description="bundled, torchvision/NAME, timm/NAME, cifar/NAME@FILE, module:factory",
    )
    method: str = Field("ttc", description="source, norm, t3a, eta, tipi, tent, ttc, or a class")
    set: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="a hyperparameter of the method; may be repeated"
    )
    paper: bool = Field(False, description="as the paper has it: batch statistics")
    mean: Annotated[tuple[float, ...], NoDecode] | None = Field(
        None, description="mean of the model's input, values in [0, 1]"
    )
    std: Annotated[tuple[float, ...], NoDecode] | None = Field(
        None, description="deviation of the model's input"
    )
    max_batch: int = Field(100, ge=1, le=4096, description="images per forward pass")
    max_wait: float = Field(
        0.0, ge=0, le=60, description="seconds the oldest image waits for company on a free device"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="torch's CPU threads; 0: torch's own choice")
    token: str | None = Field(
        None, min_length=8, description="bearer token that /predict and /reset then ask for"
    )
    state_dir: Path | None = Field(
        None, description="where streams are saved, and come back from when they are asked for"
    )
    adapt: Literal["always", "idle", "never"] = Field(
        "always", description="learn from every batch, from those with none waiting, from none"
    )
    max_streams: int = Field(1000, ge=1, description="streams in memory that adapt apart")
    max_stream_bytes: int = Field(2 << 30, ge=1, description="bytes of their states in memory")
    stream_expiry: float = Field(
        3600.0, gt=0, le=1e9, description="idle seconds after which an unsaved stream makes room"
    )
    max_queue: int = Field(1000, ge=1, description="images that may wait")
    max_queue_bytes: int = Field(
        512 << 20, ge=1, description="bytes of memory for requests and for decoding them"
    )
    max_body: int = Field(32 << 20, ge=1, description="bytes of one request")
    max_image_bytes: int = Field(10 << 20, ge=1, description="bytes of one image")
    max_images: int = Field(1000, ge=1, description="images of one request")
    max_pixels: int = Field(16_000_000, ge=1, le=MOST_PIXELS, description="pixels of one image")
    max_side: int = Field(8192, ge=1, description="pixels along one side of an image")
    decode_threads: int = Field(2, ge=1, le=64, description="threads that decode images")
    receive_timeout: float = Field(30.0, gt=0, description="seconds for a request to arrive whole")
    drain_delay: float = Field(
        0.0, ge=0, description="seconds between SIGTERM and refusing work, for load balancers"
    )
    drain_timeout: float = Field(30.0, gt=0, description="seconds to end in after SIGTERM")
    log_format: Literal["text", "json"] = Field(
        "text", description="log lines to read, or one JSON object a line"
    )
    traces: bool = Field(
        False, description="send OpenTelemetry spans to where the OTEL_ variables say; extra otel"
    )
    cors_origin: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="web origin that may call from a browser; may be repeated"
    )

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("set", "cors_origin", mode="before")
    @classmethod
    def _split_at_spaces(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @property
    def statistics(self) -> str | None:
        """Where BatchNorm statistics come from unless --set says so; None: as in the paper."""
        return None if self.paper else "moving"


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
        came = "" if name == "token" else f"; got {first['input']!r}"  # not even a wrong one
        raise ValueError(f"{flag(name)} (or TTC_{name.upper()}): {first['msg']}{came}.") from None
