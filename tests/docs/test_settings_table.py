"""docs/settings.md has every setting of the server as the code has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service.settings import SWITCHES, Settings, default, flag

TABLE = Path(__file__).parents[2] / "docs" / "settings.md"


def accepted(name: str, field: FieldInfo) -> str:
    """The values that a setting takes, as the table says it."""
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
    if not bounds:
        return ""
    lowest = f"{bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}"
    return f"{lowest} to {bounds['le']:.15g}"


def usual(name: str) -> str:
    """What holds where nothing is said."""
    value = default(name)
    if name in SWITCHES:
        return "on" if value else "off"
    if value in (None, ()):
        return ""
    return f"{value:.15g}" if isinstance(value, float | int) else value


def lines() -> Iterator[str]:
    """The table's lines, from the code."""
    for name, field in Settings.model_fields.items():
        cells = (f"`{flag(name)}`", usual(name), accepted(name, field), field.description)
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def test_the_table_has_every_setting_as_the_code_has_it() -> None:
    """Flags, defaults, bounds and meanings, in the code's order."""
    written = [line for line in TABLE.read_text().splitlines() if line.startswith("| `--")]
    assert written == list(lines())
