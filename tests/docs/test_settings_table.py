"""docs/settings.md has every setting of the server as the code has it."""

import re
from collections.abc import Iterator
from pathlib import Path

from service.settings import SWITCHES, Settings
from service.settings_reading import read
from service.settings_words import accepted, default, flag

TABLE = Path(__file__).parents[2] / "docs" / "settings.md"


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
        cells = (f"`{flag(name)}`", usual(name), accepted(name), field.description)
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def test_the_table_has_every_setting_as_the_code_has_it() -> None:
    """Flags, defaults, bounds and meanings, in the code's order."""
    written = [line for line in TABLE.read_text().splitlines() if line.startswith("| `--")]
    assert written == list(lines())
    assert all(accepted(name) for name in Settings.model_fields)  # none is left open


def test_the_file_that_it_shows_is_read(tmp_path: Path) -> None:
    """All of it, hyperparameters too."""
    (shown,) = re.findall(r"^```toml\n(.*?)^```", TABLE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "ttc.toml").write_text(shown)
    reading = read({"config": str(tmp_path / "ttc.toml")})
    said = [name for name, origin in reading.origins.items() if origin.kind == "file"]
    assert said == ["model", "set", "mean", "max_batch", "cors_origin"]
