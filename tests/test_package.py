"""The distributions: what `make dist` builds is whole, and runs where nothing but its needs is."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from service.launch import LISTENING
from service.replay import to_png
from ttc_core.datasets import Geometry, open_data

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
PACKAGES = ("service", "ttc_core")


def test_the_version_is_the_one_that_the_changelog_tells() -> None:
    """Its latest; and that of the images that compose and Kubernetes are to run."""
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", CHANGELOG, re.MULTILINE)
    assert released[0] == PROJECT["version"]
    for name in ("docker-compose.yml", "examples/kubernetes/deployment.yaml"):
        images = re.findall(r"image: ttc-service:([\d.]+)-", (ROOT / name).read_text())
        assert images
        assert set(images) == {PROJECT["version"]}


def test_the_tags_text_is_what_the_changelog_says_first(tmp_path: Path) -> None:
    """By the commands of docs/releasing.md, in a repository of its own."""
    page = (ROOT / "docs" / "releasing.md").read_text()
    blocks = re.findall(r"^ +```sh\n(.*?)^ +```", page, re.DOTALL | re.MULTILINE)
    (commands,) = [textwrap.dedent(block) for block in blocks if "git tag" in block]
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "build").mkdir()
    commit = "git init -q && git add . && git commit -qm Begin"
    said = "git tag --list --format='%(refname:short)%0a%(contents)'"
    someone = {
        f"GIT_{each}_{of}": "a@b" for each in ("AUTHOR", "COMMITTER") for of in ("NAME", "EMAIL")
    }
    done = subprocess.run(
        ["bash", "-ec", f"{commit}\n{commands}\n{said}"],
        cwd=tmp_path,
        env={**os.environ, **someone},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tag, first, empty, *paragraph = done.stdout.strip().splitlines()
    assert (tag, first, empty) == (
        f"v{PROJECT['version']}",
        f"ttc-service {PROJECT['version']}",
        "",
    )
    text = "\n".join(paragraph)
    assert text in CHANGELOG.partition(f"## [{PROJECT['version']}]")[2].partition("\n### ")[0]
    assert 100 < len(text) < 1500


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that is made of it."""
    folder: Path = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def tracked() -> set[str]:
    """The files of both packages: weights, pages, typed markers, code."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


@pytest.mark.slow
def test_both_hold_every_file_of_the_packages_and_no_others(built: Path) -> None:
    """The bundled weights, the stream, what the browser is sent."""
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    in_wheel = {each for each in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in each}
    assert in_wheel == tracked()
    assert "ttc_core/zoo/weights.safetensors" in in_wheel
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked() <= in_sdist
    beside = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore", "PKG-INFO"}
    assert {
        name for name in in_sdist if name.partition("/")[0] not in (*PACKAGES, "docs")
    } == beside


def needs() -> set[str]:
    """What stands in the site-packages of an environment with the lock's packages alone."""
    lock = (ROOT / "locks" / "cuda.txt").read_text()
    found = set()
    for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE):
        files = metadata.distribution(name).files or []
        found |= {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}
    return found


@pytest.mark.slow
def test_the_wheel_serves_where_nothing_else_is(built: Path, tmp_path: Path) -> None:
    """Of a virtual environment that has it, what its lock names, and no checkout beside it."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    origin = Path(metadata.distribution("torch").locate_file(""))
    for name in needs():
        (packages / name).symlink_to(origin / name)
    (wheel,) = built.glob("*.whl")
    install = ["-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps"]
    subprocess.run(
        [sys.executable, *install, "--python", environment / "bin" / "python", wheel],
        check=True,
        timeout=120,
    )
    server = subprocess.Popen(
        [environment / "bin" / "ttc", "serve", "--port", "0", "--threads", "1", "--device", "cpu"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if found := LISTENING.search(line):
                break
        else:
            pytest.fail("".join(lines))
        # Connections are refused until the service runs behind the address that it told.
        patient = httpx.HTTPTransport(retries=5)
        with httpx.Client(base_url=found[1], timeout=60, transport=patient) as client:
            stream = open_data("bundled", Geometry(32)).open("clean", 5, limit=1)
            headers = {"Content-Type": "image/png"}
            picture = to_png(stream.read(stream.positions)[0])
            answer = client.post("/predict", content=picture, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.json()["predictions"][0]["class"] == stream.labels[0]
            assert client.get("/docs").status_code == 200
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0
