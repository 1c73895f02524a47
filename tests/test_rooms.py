"""The arrows between the rooms, read from the imports: who may know of whom, and no cycles."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("ttc_core", "service", "conformance")
    for path in sorted((ROOT / package).rglob("*.py"))
}
WEB = ("fastapi", "starlette", "uvicorn", "httpx", "prometheus_client")


def imports(module: str, *, top_level: bool = False) -> Iterator[str]:
    """Yield what a module imports, by full name; those for type checkers alone left out."""
    tree = ast.parse(FILES[module].read_text())
    nodes = list(tree.body) if top_level else list(ast.walk(tree))
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in FILES else base


def reached(module: str) -> set[str]:
    """All that comes along when a module is imported, as far as our own files go."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports(name, top_level=True) if name in FILES else []
    return seen


def offenders(names: set[str], forbidden: tuple[str, ...]) -> set[str]:
    return {name for name in names if name.split(".")[0] in forbidden}


def test_the_reader_of_imports_sees_them():
    """Absolute ones, those of packages and modules, and those inside functions."""
    assert "ttc_core.objective" in set(imports("ttc_core.methods.ttc"))
    assert "torch" in set(imports("ttc_core.model"))
    assert "torchvision" in set(imports("ttc_core.published"))
    assert "torchvision" not in set(imports("ttc_core.published", top_level=True))
    assert "ttc_core.methods.settings" in reached("ttc_core.methods")


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("ttc_core")])
def test_the_science_knows_no_service(module):
    """ttc_core never imports the service, HTTP, asyncio or Prometheus, not even in a function."""
    assert not offenders(set(imports(module)), ("service", "asyncio", *WEB))


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        pytest.param("service.batcher", (*WEB, "torch"), id="batcher"),
        pytest.param("service.lines", (*WEB, "torch"), id="lines"),
        pytest.param("service.places", (*WEB, "torch"), id="places"),
        pytest.param("service.images", (*WEB, "torch", "http"), id="images"),
        pytest.param("service.memory", (*WEB, "torch", "PIL"), id="memory"),
        pytest.param("service.v2.reading", (*WEB, "torch", "PIL"), id="v2-reading"),
        pytest.param("service.v2.writing", (*WEB, "torch", "PIL"), id="v2-writing"),
        pytest.param("ttc_core.corruptions", ("torch",), id="corruptions"),
        pytest.param("ttc_core.geometry", ("torch",), id="geometry"),
        pytest.param("ttc_core.interpolation", ("torch", "numpy", "PIL"), id="interpolation"),
        pytest.param("ttc_core.tally", ("torch",), id="tally"),
    ],
)
def test_a_room_knows_nothing_of_what_its_docstring_denies(module, forbidden):
    """Neither directly nor through our own modules that come along."""
    assert not offenders(set(imports(module)) | reached(module), forbidden)


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("conformance")])
def test_the_conformance_kit_needs_httpx_alone(module):
    """Beside the standard library and itself: others run it, who have nothing of ours."""
    names = {name.split(".")[0] for name in imports(module)}
    assert names <= sys.stdlib_module_names | {"httpx", "conformance"}


def test_errors_are_a_leaf():
    """service/errors.py imports the standard library alone, so that any room may raise them."""
    names = {name.split(".")[0] for name in imports("service.errors")}
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("ttc_core.objective", ("ttc_core",)),
        ("ttc_core.normalization", ("ttc_core",)),
        ("ttc_core.model", ("ttc_core.methods", "ttc_core.load", "ttc_core.evaluate")),
        ("ttc_core.methods", ("ttc_core.evaluate", "ttc_core.report", "ttc_core.datasets")),
        ("ttc_core.state", ("ttc_core.evaluate", "ttc_core.report", "ttc_core.datasets")),
        ("ttc_core.evaluate", ("ttc_core.report", "ttc_core.evaluation", "ttc_core.rows")),
        ("ttc_core.evaluation", ("ttc_core.report",)),
    ],
)
def test_arrows_within_the_science_point_one_way(module, forbidden):
    """report → evaluate → methods → objective, normalization, state → model."""
    others = reached(module) - {module}
    assert not {name for name in others if name.startswith(forbidden) and name != "ttc_core"}


def test_there_are_no_import_cycles():
    """Among top-level imports of all packages, each module can be imported before its users."""
    unfinished: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        if module in unfinished:
            cycle = [*unfinished[unfinished.index(module) :], module]
            pytest.fail(f"import cycle: {' → '.join(cycle)}")
        if module in done or module not in FILES:
            return
        unfinished.append(module)
        for name in imports(module, top_level=True):
            # A package that its own module imports from is not finished either, but has to be
            # there first in any case.
            if not module.startswith(f"{name}."):
                visit(name)
        unfinished.pop()
        done.add(module)

    for module in FILES:
        visit(module)
    assert done == set(FILES)


def test_no_module_is_called_utils():
    """A helper lives beside its user until a second one needs it, then under a noun."""
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert not [name for name in FILES if vague & set(name.lstrip("_").split("."))]


@pytest.mark.parametrize("module", [name for name in FILES if FILES[name].read_text().strip()])
def test_each_module_says_in_its_first_line_what_it_is(module):
    """A docstring on line 1 that is a sentence."""
    first_line = FILES[module].read_text().splitlines()[0]
    documentation = ast.get_docstring(ast.parse(FILES[module].read_text()))
    assert documentation
    assert first_line.startswith('"""')
    assert len(documentation.splitlines()[0]) > 15
