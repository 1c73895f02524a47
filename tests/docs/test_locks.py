"""The lock files fit pyproject.toml; `make lock` remakes them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What each lock file is made from.
RUNNING = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [
    Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines
]
OF_THE_LOCKS = {"python_version": "3.11", "sys_platform": "linux"}


def locked(name: str) -> dict[str, tuple[str, int, bool]]:
    """package -> its version, the number of its hashes, whether pyproject.toml asks for it."""
    found = {}
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
        package, version = entry.split()[0].split("==")
        hashes = len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry))
        found[package] = version, hashes, "(pyproject.toml)" in entry
    return found


@pytest.mark.parametrize(
    ("name", "requirements", "left_out"),
    [
        ("dev", RUNNING + EXTRAS, set()),
        ("cuda", RUNNING, set()),
        ("cpu", RUNNING, {"torch", "torchvision"}),
    ],
)
def test_a_lock_has_what_pyproject_asks_for_and_nothing_else(name, requirements, left_out):
    """Each in a version that is allowed, with its hashes; `make lock` puts it right."""
    found = locked(name)
    wanted = {
        canonicalize_name(each.name): each.specifier
        for each in requirements
        if each.name != PROJECT["name"]
        and (each.marker is None or each.marker.evaluate(OF_THE_LOCKS))
    }
    assert {package for package, (_, _, asked) in found.items() if asked} == set(wanted) - left_out
    for package, specifier in wanted.items():
        if package not in left_out:
            assert specifier.contains(found[package][0]), f"{package}: run make lock"
    assert all(hashes for _, hashes, _ in found.values())


@pytest.mark.parametrize("name", ["cuda", "cpu"])
def test_the_image_gets_what_the_tests_ran_with(name):
    """Its packages are among those of CI, in the same versions."""
    tested = locked("dev")
    for package, (version, _, _) in locked(name).items():
        assert version == tested[package][0], f"{package}: run make lock"


def test_the_image_for_the_cpu_lacks_torch_and_cuda_alone():
    """Those come from PyTorch's own index, or not at all."""
    missing = locked("cuda").keys() - locked("cpu").keys()
    assert {"torch", "torchvision"} <= missing
    assert all(name.startswith(("torch", "triton", "cuda", "nvidia")) for name in missing)
    assert not locked("cpu").keys() - locked("cuda").keys()
