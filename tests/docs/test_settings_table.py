"""docs/settings.md has every setting of the server as the code has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service.settings import SWITCHES, Settings, flag

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


def default(name: str, field: FieldInfo) -> str:
    """What holds where nothing is said."""
    if name in SWITCHES:
        return "on" if field.default else "off"
    if field.default in (None, ()):
        return ""
    return f"{field.default:.15g}" if isinstance(field.default, float | int) else field.default


def lines() -> Iterator[str]:
    """The table's lines, from the code."""
    for name, field in Settings.model_fields.items():
        cells = (f"`{flag(name)}`", default(name, field), accepted(name, field), field.description)
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def test_the_table_has_every_setting_as_the_code_has_it() -> None:
    """Flags, defaults, bounds and meanings, in the code's order."""
    written = [line for line in TABLE.read_text().splitlines() if line.startswith("| `--")]
    assert written == list(lines())
