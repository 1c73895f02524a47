"""docker/Dockerfile read as text: lint, and what both of its targets have to say."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TARGETS = ("cpu", "cuda")


def stages():
    """The instructions of each stage, by its name, as (instruction, rest) with lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    text = text.replace("\\\n", "")
    found, stage = {}, None
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            parent, _, name = rest.partition(" AS ")
            stage = found[name] = [("FROM", parent)]
        elif stage is not None:
            stage.append((instruction, rest.strip()))
    return found


def chain(name):
    """A stage's instructions after those of the stages it stands on."""
    found = stages()
    instructions = found[name]
    while (parent := instructions[0][1]) in found:
        instructions = found[parent] + instructions[1:]
    return instructions


def test_hadolint_finds_nothing():
    """And nothing is excused: there is no ignore comment."""
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hadolint ignore" not in DOCKERFILE.read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_ends_as_a_numeric_user(target):
    """A name could be root's; a number above 0 is not."""
    instruction, user = stages()[target][-1]
    assert instruction == "USER"
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_starts_the_service_without_a_shell(target):
    """A shell would keep SIGTERM to itself."""
    said = dict(chain(target))
    assert json.loads(said["ENTRYPOINT"]) == ["ttc"]
    assert json.loads(said["CMD"]) == ["serve"]
    check = json.loads(said["HEALTHCHECK"].partition("CMD ")[2])
    assert "torch" not in " ".join(check)


def test_the_targets_differ_in_what_is_installed_alone():
    """What the service is made of, how it runs and who runs it are the same steps."""
    cpu, cuda = (
        {pair for pair in stages()[target] if "locks" not in pair[1]} for target in TARGETS
    )
    assert {pair for pair in cpu ^ cuda if "NVIDIA" not in pair[1] and pair[0] != "ARG"} == set()


def test_what_is_downloaded_is_locked():
    """To the hash; but for torch of PyTorch's own index, which the lock has only the version of."""
    for target in TARGETS:
        installs = [rest for _, rest in chain(target) if "pip install" in rest]
        for rest in installs:
            locked = "--require-hashes" in rest and f"/locks/{target}.txt" in rest
            versions_only = "==[0-9.]+' /locks/cuda.txt" in rest and "${TORCH_INDEX}" in rest
            assert locked or "--no-index" in rest or (target == "cpu" and versions_only)
        assert any("--require-hashes" in rest for rest in installs)


def test_the_base_image_is_pinned_to_a_patch_version():
    """`3.11-slim` would be another image next month."""
    pinned = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)[1]
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-[a-z]+", pinned)
    parents = {instructions[0][1] for instructions in stages().values()}
    assert parents - stages().keys() == {"${PYTHON_IMAGE}"}


def test_the_version_is_that_of_pyproject():
    """In the label, and where the first lines say how to build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = DOCKERFILE.read_text()
    for target in TARGETS:
        assert ("LABEL", f'org.opencontainers.image.version="{project["version"]}"') in chain(
            target
        )
        assert f"ttc-service:{project['version']}-{target} " in text


def test_the_build_context_holds_what_is_copied_and_little_else():
    """All is left out but what the wheel is made of."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for instructions in stages().values()
        for instruction, rest in instructions
        if instruction == "COPY"
        for source in rest.split()[:-1]
    } | {"locks"}  # bound
    assert "*" in lines
    assert kept == copied
    assert all((ROOT / name).exists() for name in kept)
