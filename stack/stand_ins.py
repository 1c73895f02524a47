"""Images of Debian's packages that stand in for those that a registry has.

The base of docker/Dockerfile is Debian 12 with its Python 3.11; torch is not downloaded but bound
in from what runs this. Prometheus and Alertmanager are Debian's, run as their own images run
them: as nobody, in a folder of theirs, with busybox beside them.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from stack.engine import Engine

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = ROOT / "docker-compose.yml"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
TORCH = "/opt/torch"
"""Where torch is bound in."""

SUITE = "bookworm"
BASE_PACKAGES = "python3-minimal,python3-venv,ca-certificates,passwd"
# The certificates are this machine's, for a build that downloads from a mirror with its own.
BASE = f"""
FROM scratch
ADD rootfs.tar /
COPY ca-certificates.crt {CERTIFICATES}
ENV PYTHONPATH={TORCH}
"""

MONITORS = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}
"""Services of the compose file, and the Debian packages (and programs) that stand in for them."""

# As in their own images: nobody (65534) owns the folder of the data, and busybox has wget.
MONITOR = """
FROM scratch
COPY files /
COPY --chown=65534:65534 data /{service}
USER 65534:65534
ENTRYPOINT ["/usr/bin/{program}"]
"""
SHARED = ("libc6", "busybox-static")
APPLETS = ("sh", "wget", "cat", "kill")


def base_name() -> str:
    """The image that docker/Dockerfile stands on."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found
    return found[1]


def image_of(service: str) -> str:
    """The image of a service of the compose file."""
    name: str = yaml.safe_load(COMPOSE.read_text())["services"][service]["image"]
    return name


def make_base(engine: Engine) -> None:
    """Make the base, about a minute, if it is not there.

    Raises:
        RuntimeError: a step failed, with what was said.
    """
    if engine.has(base_name()):
        return
    with tempfile.TemporaryDirectory(dir=engine.folder) as folder:
        context = Path(folder)
        bootstrap = ("mmdebstrap", "--variant=apt", f"--include={BASE_PACKAGES}", SUITE)
        engine.run(*bootstrap, context / "rootfs.tar")
        shutil.copy(CERTIFICATES, context)
        _build(engine, context, BASE, base_name())


def make_monitors(engine: Engine) -> None:
    """Make Prometheus' and Alertmanager's under the names of the compose file, if not there.

    Raises:
        RuntimeError: a step failed, with what was said.
    """
    if all(engine.has(image_of(service)) for service in MONITORS):
        return
    with tempfile.TemporaryDirectory(dir=engine.folder) as folder:
        archives = Path(folder)
        engine.run("apt-get", "download", *SHARED, *MONITORS.values(), at=archives)
        for service, package in MONITORS.items():
            context = archives / service
            files = context / "files"
            (context / "data").mkdir(parents=True)
            for name in (*SHARED, package):
                (archive,) = archives.glob(f"{name}_*.deb")
                engine.run("dpkg-deb", "--extract", archive, files)
            for applet in APPLETS:
                (files / "bin" / applet).symlink_to("busybox")
            text = MONITOR.format(service=service, program=package)
            _build(engine, context, text, image_of(service))


def _build(engine: Engine, context: Path, dockerfile: str, name: str) -> None:
    (context / "Dockerfile").write_text(dockerfile)
    engine.build(context, context / "Dockerfile", name)


def link_torch(folder: Path) -> None:
    """Hard-link torch, torchvision and all they need into a new folder of the same file system.

    It is there once it is whole.
    """
    found: dict[tuple[str, ...], metadata.Distribution] = {}
    for name in ("torch", "torchvision"):
        _with_requirements(Requirement(name), found)
    sources = {source for distribution in found.values() for source in _top_level(distribution)}
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, unfinished / source.name, copy_function=os.link)
        else:
            os.link(source, unfinished / source.name)
    unfinished.rename(folder)


def _with_requirements(
    requirement: Requirement, found: dict[tuple[str, ...], metadata.Distribution]
) -> None:
    """Add the distributions that `requirement` stands for to `found`."""
    key = (requirement.name, *sorted(requirement.extras))
    if key in found:
        return
    found[key] = metadata.distribution(requirement.name)
    for line in found[key].requires or ():
        needed = Requirement(line)
        extras = ("", *requirement.extras)
        if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
            _with_requirements(needed, found)


def _top_level(distribution: metadata.Distribution) -> Iterator[Path]:
    """Files and folders of site-packages that a distribution has."""
    for name in {file.parts[0] for file in distribution.files or ()} - {".."}:
        yield Path(str(distribution.locate_file(name)))
