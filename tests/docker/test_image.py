"""The image, built by the Dockerfile's own steps and run as the compose file runs it, in parts.

There need not be a container engine: buildah builds with chroot isolation on a stand-in for the
base image (`stack/stand_ins.py`), and the container's processes run in a
mount namespace with a read-only root, /tmp in memory and /state bound in, as the image's user.
torch is not downloaded: the copy that runs the tests is bound in, and pip finds it installed.

Not exercised: the real base image, PyTorch's CPU index, the target `cuda`, a GPU; and an engine's
own part (read_only, cap_drop, limits, published ports, restarts, init), which is test_stack.py's.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from service.client import Client
from service.replay import to_png
from stack.engine import Engine
from stack.stand_ins import COMPOSE, DOCKERFILE, ROOT, TORCH, link_torch, make_base
from ttc_core.datasets import Geometry, open_data

USER = 10001

# What a container engine does with `read_only: true`, `tmpfs: /tmp` and a volume on /state, in a
# mount namespace of its own; replaced by the container's process, so that signals reach that one.
CONTAINER = """
root=$1 state=$2 torch=$3 access=$4 user=$5; shift 5
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind "$state" "$root/state"
mount --bind "$torch" "$root/opt/torch"
mount -o remount,bind,ro "$root/opt/torch"
mount -o "remount,bind,$access" "$root"
exec chroot --userspec="$user" "$root" env --ignore-environment --chdir=/app "$@"
"""

# Every folder and file that this user may write to, but for the kernel's own trees and what links
# point to.
WRITABLE = """
import os
import re
for folder, folders, files in os.walk("/"):
    if folder == "/":
        folders[:] = set(folders) - {"proc", "sys", "dev"}
    for path in [folder, *(os.path.join(folder, name) for name in files)]:
        if not os.path.islink(path) and os.access(path, os.W_OK):
            print(path)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not all(map(shutil.which, ("buildah", "mmdebstrap"))),
        reason="buildah and mmdebstrap are not installed",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="building on a root of its own needs root"),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11), reason="torch is bound into a base with Python 3.11"
    ),
]


@dataclass(frozen=True)
class Container:
    """A built image that has been unpacked.

    Attributes:
        root: its file system.
        config: what the image says of user, environment, entry point and health check.
        state: what is bound to /state.
        torch: what is bound to /opt/torch.
        port: where it listens; it shares the network with the tests.
    """

    root: Path
    config: dict
    state: Path
    torch: Path
    port: int

    def command(self, *arguments, read_only=True):
        """The command that runs `arguments` in the container, as an engine would."""
        # HOME is the engine's to set, from the user's entry in /etc/passwd.
        environment = [*self.config["Env"], "HOME=/tmp", f"TTC_PORT={self.port}"]
        access = "ro" if read_only else "rw"
        places = map(str, (self.root, self.state, self.torch))
        shell = ["unshare", "--mount", "sh", "-euc", CONTAINER, "container", *places]
        return [*shell, access, self.config["User"], *environment, *arguments]

    def run(self, *arguments, **options):
        command = self.command(*arguments, **options)
        return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def workspace():
    """A folder that hard links can be made in."""
    with tempfile.TemporaryDirectory(prefix="image-test-", dir=sys.prefix) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def container(workspace):
    """The image of the target `cpu`, built and unpacked."""
    torch = workspace / "torch"
    link_torch(torch)
    engine = Engine(workspace / "engine", {torch: TORCH})
    engine.configure()
    make_base(engine)
    try:
        engine.build(ROOT, DOCKERFILE, "localhost/ttc", "--target=cpu")
        inspected = json.loads(engine.run("buildah", "inspect", "--type=image", "localhost/ttc"))
        made = engine.run("buildah", "from", "--pull-never", "localhost/ttc")
        root = Path(engine.run("buildah", "mount", made))
        state = workspace / "state"
        state.mkdir()
        os.chown(state, USER, USER)  # as a new volume is: it takes after the image's folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        yield Container(root, inspected["Docker"]["config"], state, torch, port)
    finally:
        engine.run("buildah", "umount", "--all")
        engine.run("buildah", "rm", "--all")
        engine.run("buildah", "rmi", "--all", "--force")


def test_it_runs_as_a_numeric_user_that_is_not_root(container):
    """Kubernetes' runAsNonRoot wants a number, and the folder for states belongs to it."""
    assert container.config["User"] == f"{USER}:{USER}"
    assert container.run("id", "-u").stdout.strip() == str(USER)
    assert (container.root / "state").stat().st_uid == USER


def test_with_a_read_only_root_only_tmp_and_state_can_be_written_to(container):
    """All of the file system was tried, as the container's user."""
    tried = container.run("python3", "-c", WRITABLE)
    assert tried.returncode == 0, tried.stderr
    assert set(tried.stdout.split()) == {"/tmp", "/state"}


def test_with_a_writable_root_nobody_can_change_the_program(container):
    """Without read_only a user may write where Debian lets everyone, and nowhere else."""
    tried = container.run("python3", "-c", WRITABLE, read_only=False)
    assert tried.returncode == 0, tried.stderr
    assert set(tried.stdout.split()) <= {"/tmp", "/state", "/var/tmp", "/run/lock"}


def test_it_brings_no_compiler_and_leaves_no_cache(container):
    """Nothing that building needed is in the image, and bytecode need not be made at each start."""
    for name in ("gcc", "cc", "g++", "make"):
        assert not (container.root / "usr" / "bin" / name).exists()
    assert not list((container.root / "tmp").iterdir())
    assert not (container.root / "root" / ".cache" / "pip" / "http").exists()
    modules = list((container.root / "opt" / "ttc").rglob("service/*.py"))
    assert modules
    for module in modules:
        assert list((module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"))


def test_it_serves_answers_the_health_check_and_saves_on_sigterm(container, workspace):
    """The image's entry point, command and health check as they are; exit status 0."""
    health_check = container.config["Healthcheck"]["Test"]
    assert health_check[0] == "CMD"
    assert container.run(*health_check[1:]).returncode != 0  # nothing listens yet
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=300)
    pictures = [to_png(pixels) for pixels in stream.read(stream.positions)]
    log = workspace / "serve.log"
    arguments = (*container.config["Entrypoint"], *container.config["Cmd"])
    with log.open("w") as output:
        server = subprocess.Popen(
            container.command(*arguments), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            with Client(f"http://127.0.0.1:{container.port}", timeout=60) as client:
                wait_until(lambda: client.ready() or server.poll() is not None)
                assert server.poll() is None, log.read_text()
                assert owner_of(server.pid) == USER
                for start in range(0, 300, 100):
                    batch = slice(start, start + 100)
                    answer = client.predict(pictures[batch], labels=stream.labels[batch].tolist())
                    assert len(answer.predictions) == 100
            checked = container.run(*health_check[1:])
            assert checked.returncode == 0, checked.stderr
            replayed = container.run("ttc", *replay_command(container.port))
            assert replayed.returncode == 0, replayed.stderr
            assert "fog 5: 40 images in" in replayed.stdout
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0, log.read_text()
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    saved = list(container.state.glob("*.safetensors"))
    assert len(saved) == 2  # one a stream: the client's and the replay's
    assert {file.stat().st_uid for file in saved} == {USER}
    shown = container.run("ttc", "state", "/state", "--json")
    steps = [
        json.loads(line)["counters"]["counters"]["steps"] for line in shown.stdout.splitlines()
    ]
    assert any(steps), shown.stderr


def replay_command(port):
    """The compose file's replay, of fewer images, and to where the server is."""
    replay = yaml.safe_load(COMPOSE.read_text())["services"]["replay"]
    command = [
        part.replace("http://ttc:8000", f"http://127.0.0.1:{port}") for part in replay["command"]
    ]
    return [*command, "--corruptions=fog", "--limit=40"]


def owner_of(process):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Uid:")).split()[1])


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)
