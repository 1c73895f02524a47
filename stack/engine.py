"""Podman and buildah, with all that they keep in a folder of its own.

Knows nothing of what the images are. Whoever runs containers of his own on this machine finds
them untouched: names, volumes, networks and locks are others.
"""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {
    "podman": "podman",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "runc": "runc",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "/usr/libexec/podman/catatonit": "catatonit",
}
"""What has to be there, and the Debian package that has it."""

LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
MOST = 1 << 15
"""Of either. By itself podman asks for a million, also where less is allowed: then none starts."""


def missing() -> list[str]:
    """The Debian packages that are not installed here."""
    return [package for program, package in PROGRAMS.items() if shutil.which(program) is None]


@dataclass(frozen=True)
class Engine:
    """A folder with images, containers, volumes and networks.

    Attributes:
        folder: absolute, on a file system that overlays can be made on.
        volumes: what is bound into every container and every step of a build, read only:
            folder of this machine -> folder of the container.
    """

    folder: Path
    volumes: Mapping[Path, str]

    def configure(self) -> None:
        """Write what podman and buildah read, and `environment` for a shell to read."""
        self._temporary.mkdir(parents=True, exist_ok=True)
        limits = [f"{name}={_limit(kind)}:{_limit(kind)}" for name, kind in LIMITS.items()]
        binds = [f"{source}:{target}:ro" for source, target in self.volumes.items()]
        (self.folder / "containers.conf").write_text(
            "[containers]\n"
            f"default_ulimits = {json.dumps(limits)}\n"
            f"volumes = {json.dumps(binds)}\n"
            "[engine]\n"
            'runtime = "runc"\n'
            'cgroup_manager = "cgroupfs"\n'  # there need not be systemd
            'events_logger = "file"\n'
            'lock_type = "file"\n'  # those in memory are shared by all folders
            f'tmp_dir = "{self.folder}/tmp"\n'
            "[network]\n"
            f'network_config_dir = "{self.folder}/networks"\n'
        )
        (self.folder / "storage.conf").write_text(
            "[storage]\n"
            'driver = "overlay"\n'
            f'graphroot = "{self.folder}/storage"\n'
            f'runroot = "{self.folder}/run"\n'
        )
        lines = [f"export {name}='{value}'\n" for name, value in self.environment.items()]
        (self.folder / "environment").write_text("".join(lines))

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point podman, podman-compose and buildah here."""
        return {
            "CONTAINERS_CONF": f"{self.folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{self.folder}/storage.conf",
            "BUILDAH_ISOLATION": "chroot",  # the steps of a build use this machine's network
            "BUILDAH_FORMAT": "docker",  # OCI's images have no health check
        }

    @property
    def _temporary(self) -> Path:
        """Caches of builds lie there, too."""
        return self.folder / "temporary"

    def run(self, *command: str | Path, at: Path | None = None) -> str:
        """Run a command to its end, in a folder, and return what it printed.

        Raises:
            RuntimeError: it failed; the text has the end of what it said.
        """
        done = self.attempt(*command, at=at)
        if done.returncode:
            said = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{said}")
        return done.stdout.strip()

    def attempt(
        self, *command: str | Path, at: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever comes of it."""
        return subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            cwd=at,
            env={**os.environ, **self.environment, "TMPDIR": str(self._temporary)},
        )

    def build(self, context: Path, file: Path, name: str, *options: str) -> None:
        """Make an image of a Dockerfile; what it stands on has to be here."""
        # buildah reads no volumes from containers.conf, podman does.
        volumes = [f"--volume={source}:{target}:ro" for source, target in self.volumes.items()]
        options = ("--format=docker", "--pull-never", *volumes, *options)
        self.run("buildah", "bud", *options, "--tag", name, "--file", file, context)

    def has(self, name: str) -> bool:
        """Whether there is an image of this name."""
        return self.attempt("buildah", "inspect", "--type=image", name).returncode == 0


def _limit(kind: int) -> int:
    """The highest that may be set here."""
    _, hard = resource.getrlimit(kind)
    return MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
