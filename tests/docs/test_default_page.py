"""docs/default.md has every number of the served default as the code has it."""

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from ttc_core.methods import DEFAULT_METHOD, ttc_stream
from ttc_core.methods.parts import (
    conditions,
    diversity,
    prior,
    scene,
    second_view,
    shadow,
    stream_statistics,
    temperature,
)

PAGE = (Path(__file__).parents[2] / "docs" / "default.md").read_text()
MODULES = (
    *(ttc_stream, stream_statistics, shadow, conditions),
    *(diversity, prior, scene, second_view, temperature),
)


def constants(module: ModuleType) -> dict[str, Any]:
    """What a module defines itself, by its name and theirs."""
    name, source = module.__name__.rpartition(".")[2], inspect.getsource(module)
    defined = re.findall(r"^([A-Z_]+(?:, [A-Z_]+)*) = ", source, re.MULTILINE)
    return {f"{name}.{each}": vars(module)[each] for each in ", ".join(defined).split(", ")}


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return value if isinstance(value, str) else f"{value:g}"


def test_the_page_has_every_number_and_setting_of_the_default() -> None:
    """Those that it shares with other methods, the optimizer's, are said below the table."""
    own = ttc_stream.TTCStreamSettings
    values = {name: own.model_fields[name].default for name in own.__annotations__}
    for module in MODULES:
        values |= constants(module)
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \|$", PAGE, re.MULTILINE)
    assert dict(rows) == {name: shown(value) for name, value in values.items()}
    assert len(rows) == len(values)


def test_the_page_is_of_what_is_served() -> None:
    """It names the method."""
    assert f"`{DEFAULT_METHOD}`" in PAGE
