"""Each table of the documents is compared with the code, or says what measures it again."""

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pytest

from service.cli import cli
from service.demo import ORDERS, SERVERS
from ttc_core.envelope.clauses import BUILT_IN, Envelope, accepted_of
from ttc_core.frames import KINDS
from ttc_core.guard import guarded, snapshots, watch
from ttc_core.methods import PAPER_METHODS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# Compared with the code here, in the test that is named, or in another that is.
COMPARED = {
    "commands.md": "verb",
    "default.md": "number",  # test_default_page.py
    "envelope.md": "clause, method",
    "doctor.md": "code",  # service/test_doctor.py
    "faults.md": "kind",
    "guard.md": "step, kind, where",  # the last: ttc_core/test_influence.py
    "metrics.md": "metric",  # service/test_metrics.py
    "settings.md": "flag",  # test_settings_table.py
    "utility.md": "--mode",
    "v2.md": "path, datatype",
}
NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?!\w)")
# In a sentence between backticks, in a block at the beginning of a line.
COMMAND = re.compile(
    r"(?:^ *|`)(?:make (?P<target>[a-z-]+)|python -m (?P<module>[\w.]+)|ttc (?P<verb>[a-z]+))",
    re.MULTILINE,
)


class Table(NamedTuple):
    """A table of a page, its cells without what marks them, and the section it stands in."""

    page: Path
    section: str
    header: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {' | '.join(self.header)[:40]}"


def cells(line: str) -> list[str]:
    return [cell.strip(" *`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables() -> Iterator[Table]:
    for page in PAGES:
        for section in re.split(r"^(?=#+ )", page.read_text(), flags=re.MULTILINE):
            for found in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
                header, _, *rows = map(cells, found.splitlines())
                yield Table(page, section, header, rows)


TABLES = list(tables())


def the_table(page: str, first: str) -> Table:
    """The only one of a page whose first column is called so."""
    (found,) = [each for each in TABLES if each.page == DOCS / page and each.header[0] == first]
    return found


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_table_of_numbers_says_what_measured_them(table: Table) -> None:
    """A command in its section, which is one; or it is of the code, and compared with that."""
    assert all(len(row) == len(table.header) for row in table.rows)
    compared = COMPARED.get(table.page.name, "").split(", ")
    if table.header[0] in compared or not NUMBER.search(str([row[1:] for row in table.rows])):
        return
    if "\nSource: " in table.page.read_text():  # such a page's figures are held by test_figures.py
        return
    commands = list(COMMAND.finditer(table.section))
    assert commands
    targets = set(re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands:
        kind, name = command.lastgroup, command[command.lastgroup or 0]
        module = ROOT.joinpath(*name.split("."))
        assert (
            (kind == "target" and name in {each for line in targets for each in line.split()})
            or (kind == "module" and (module.is_dir() or module.with_suffix(".py").exists()))
            or (kind == "verb" and name in cli.commands)
        ), command[0]


def test_every_verb_of_the_command_line_is_told() -> None:
    told = [row[0].split()[1].strip("`") for row in the_table("commands.md", "verb").rows]
    assert sorted(told) == sorted(cli.commands)


def test_the_clauses_of_an_envelope_have_the_values_of_the_code() -> None:
    """What is built in, and what each takes."""
    rows = {row[0]: row[1:] for row in the_table("envelope.md", "clause").rows}
    assert list(rows) == list(Envelope.model_fields)
    for name, (built_in, takes, *_) in rows.items():
        assert takes == accepted_of(name)
        shown = built_in.replace('"', "")
        value = getattr(BUILT_IN, name)
        assert shown == (f"[{', '.join(value)}]" if isinstance(value, tuple) else f"{value:g}")


def test_each_method_is_told_which_clauses_speak_of_it() -> None:
    told = " ".join(row[0] for row in the_table("envelope.md", "method").rows).lower()
    assert set(PAPER_METHODS) <= set(re.findall(r"[a-z0-9]+", told))


def test_the_guards_steps_have_the_numbers_of_the_code() -> None:
    """Wealths, and images until something is tried again."""
    steps = {row[0]: " ".join(row[1:]) for row in the_table("guard.md", "step").rows}
    (suspect,) = [text for name, text in steps.items() if name.startswith("suspect")]
    assert f"{BUILT_IN.worse_than_source:g} (the envelope's `worse_than_source`)" in suspect
    assert f"{watch.DOUBTFUL:g} (`DOUBTFUL`)" in suspect
    assert f"{watch.SOON:,} images (`SOON`)" in steps["reset"]
    assert f"{watch.RETRIED:,} images (`RETRIED`)" in steps["reset, `no_gain"]
    assert f"{watch.RELEASED:g} (`RELEASED`)" in steps["release"]
    text = (DOCS / "guard.md").read_text()
    assert f"every {guarded.SNAPSHOT_EVERY} images (`SNAPSHOT_EVERY`)" in text
    assert snapshots.MOST == 2
    assert "two are kept (`MOST`)" in text


def test_the_faulty_frames_are_those_that_are_looked_for() -> None:
    """In the order in which they are."""
    assert tuple(row[0] for row in the_table("guard.md", "kind").rows) == KINDS


def test_the_ways_of_utility_are_those_of_replay() -> None:
    (mode,) = [each for each in cli.commands["replay"].params if each.name == "mode"]
    told = {row[0] for row in the_table("utility.md", "--mode").rows}
    assert told == set(mode.type.choices) - {"lockstep", "closed", "open"}  # type: ignore[attr-defined]


def test_what_holds_a_kind_of_fault_is_there() -> None:
    for *_, held_by in the_table("faults.md", "kind").rows:
        named = re.findall(r"[\w/]+\.py", held_by)
        assert named
        assert all((ROOT / "tests" / name).exists() for name in named), held_by


def test_what_monitoring_is_made_of_is_there() -> None:
    for row in the_table("monitoring.md", "file").rows:
        for name in re.findall(r"(?:docker|monitoring)/[\w./-]+", " ".join(row)):
            assert (ROOT / name).exists(), name


def test_the_demos_table_has_its_servers_and_orders() -> None:
    """As `make demo` prints it at the end."""
    readme = (ROOT / "README.md").read_text()
    shown = readme.partition("<!-- demo -->")[2].partition("<!-- /demo -->")[0]
    _, header, *lines = shown.strip().strip("`").strip().splitlines()
    assert re.split(r" {2,}", header.strip())[1:] == list(ORDERS)
    assert [re.split(r" {2,}", line)[0] for line in lines] == list(SERVERS)


@pytest.mark.parametrize("table", [each for each in TABLES if each.header[-1] == "Avg"], ids=str)
def test_a_mean_is_that_of_its_line(table: Table) -> None:
    """Cells are rounded, so that it may be off by a tenth."""
    for row in table.rows:
        *values, mean = (float(cell) for cell in row[1:])
        assert mean == pytest.approx(fmean(values), abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["SOURCE", "NORM", "TENT"])
def test_a_line_of_the_accuracies_is_measured_again(method: str, tmp_path: Path) -> None:
    """In fog; another release of torch may move an image or two."""
    from click.testing import CliRunner

    from ttc_core.rows import Rows

    table = the_table("numbers.md", "Method")
    (row,) = [each for each in table.rows if each[0] == method]
    told = float(row[table.header.index("fg")])
    rows = tmp_path / "rows.jsonl"
    command = ["evaluate", "bundled", "--methods", method.lower(), "--corruptions", "fog"]
    done = CliRunner().invoke(cli, [*command, "--device", "cpu", "--json", str(rows)])
    assert done.exit_code == 0, done.output
    (found,) = Rows(rows)
    assert 100 * found["accuracy"] == pytest.approx(told, abs=0.3)
