"""The state folder: held by one process, and whatever a user's folder holds ends in a sentence."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from service.cli import cli
from service.state_folder import StateFolder, StateFolderError
from tests.fixtures.networks import make_images, make_model
from ttc_core.methods import create
from ttc_core.state_file import StateError

HOLDER = """
import sys
from pathlib import Path
from service.state_folder import StateFolder
folder = StateFolder(Path(sys.argv[1]), method="ttc", model="small")
print("held" if folder.problem is None else folder.problem, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    """Make a `StateFolder`; all are closed in the end."""
    made = []

    def make(path=tmp_path):
        made.append(StateFolder(path, method="ttc", model="small"))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def method():
    made = create("ttc", make_model(), statistics="moving", samples_per_step=8)
    for seed in range(3):
        made.adapt(made.predict(make_images(8, seed=seed)))
    return made


# The lease


def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path, folder, method):
    """The refusal names the holder; after kill -9 the folder is free, without anybody's help."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StateFolderError) as refused:
            folder()
        assert f"process {process.pid} on {socket.gethostname()}" in str(refused.value)
        process.kill()
        process.wait()
    again = folder()
    again.save("gate", method)
    assert again.names() == ["gate"]


def test_a_closed_folder_may_be_held_again(folder):
    """Also within one process; two at once may not."""
    first = folder()
    with pytest.raises(StateFolderError, match=f"process {os.getpid()}"):
        folder()
    first.close()
    folder()


def test_a_folder_deleted_and_made_anew_is_held_anew(tmp_path, folder, method):
    """A save makes it again; if another process was faster, that one's it is."""
    path = tmp_path / "states"
    first = folder(path)
    empty(path)
    first.save("gate", method)
    assert first.names() == ["gate"]
    with pytest.raises(StateFolderError):
        folder(path)
    empty(path)
    folder(path)
    with pytest.raises(StateFolderError):
        first.save("gate", method)


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


@pytest.mark.parametrize(
    "put",
    [
        pytest.param(lambda lease: lease.mkdir(), id="folder"),
        pytest.param(lambda lease: lease.symlink_to("/nowhere/at/all"), id="dangling-link"),
        pytest.param(lambda lease: lease.symlink_to("/etc/passwd"), id="link-elsewhere"),
    ],
)
def test_a_lease_that_cannot_be_taken_leaves_the_folder_to_be_read(tmp_path, folder, method, put):
    """It says why nothing is saved; nothing else is touched."""
    saved = folder()
    saved.save("gate", method)
    saved.close()
    (tmp_path / ".lease").unlink()
    put(tmp_path / ".lease")
    before = Path("/etc/passwd").read_bytes()
    reader = folder()
    assert reader.problem
    assert reader.load("gate", method.fork())
    with pytest.raises(OSError, match=r"\.lease"):
        reader.save("gate", method)
    assert Path("/etc/passwd").read_bytes() == before


def test_a_lease_may_hold_anything(tmp_path, folder):
    """Rubbish in it is nobody's, and is not shown to a terminal as it is."""
    (tmp_path / ".lease").write_bytes(b"\x1b[2J" * 100)
    first = folder()
    assert first.problem is None
    (tmp_path / ".lease").write_bytes(b"\x1b[2J\xff\x00")
    with pytest.raises(StateFolderError) as refused:
        folder()
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="file"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="dangling-link"),
        pytest.param(lambda path: path.symlink_to(path), id="loop"),
        pytest.param(lambda path: os.mkfifo(path), id="pipe"),
    ],
)
def test_what_is_no_folder_is_refused_in_a_sentence(tmp_path, folder, make):
    """A file, a dangling link, a loop, a pipe."""
    make(tmp_path / "states")
    with pytest.raises(StateFolderError, match=r"states cannot be used: .+\."):
        folder(tmp_path / "states")


def test_a_name_no_system_takes_is_refused_in_a_sentence(folder):
    """Too long, or with a NUL in it."""
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(StateFolderError, match="cannot be used"):
            folder(Path(name))


# What is in it


def test_only_files_of_streams_are_streams(tmp_path, folder):
    """Other spellings, names that no stream has, and other files are left alone."""
    kept = [
        *("notes.txt", "gate.rejected", "gate.safetensors.bak", ".safetensors", "a b.safetensors"),
        *("a%20b.safetensors", "%61.safetensors", "%2e%2e%2fetc.safetensors", "%00.safetensors"),
        *("a:b.safetensors", "é.safetensors", f"{'x' * 65}.safetensors", "gate.SAFETENSORS"),
        *("%zz.safetensors", "%3a.safetensors", "a%0A.safetensors", "a\n.safetensors"),
    ]
    for name in kept:
        (tmp_path / name).write_bytes(b"mine")
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.safetensors", os.O_CREAT))
    for name in ("gate", "a%3Ab", "..", ".", "x" * 64):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    assert folder().names() == sorted(["gate", "a:b", "..", ".", "x" * 64])
    assert all((tmp_path / name).read_bytes() == b"mine" for name in kept)


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path, folder):
    """Only files named as ours are; a download of somebody's is not."""
    ours = [tmp_path / f"{name}.safetensors.part" for name in ("gate", "a%3Ab", "..")]
    others = [
        tmp_path / name
        for name in ("film.part", "a b.safetensors.part", "x.safetensors.part.part", "part")
    ]
    for path in (*ours, *others):
        path.write_bytes(b"half")
    folder()
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)


def test_a_reader_removes_nothing(tmp_path, folder):
    """Unfinished files of the process that holds the folder are its own."""
    first = folder()
    (tmp_path / "gate.safetensors.part").write_bytes(b"half")
    with pytest.raises(StateFolderError):
        folder()
    assert (tmp_path / "gate.safetensors.part").exists()
    first.close()


@pytest.mark.parametrize(
    "put",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.mkdir(), id="folder"),
        pytest.param(lambda path: os.mkfifo(path), id="pipe"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="dangling-link"),
        pytest.param(lambda path: path.symlink_to(path.name), id="loop"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="device"),
        pytest.param(lambda path: path.symlink_to("/etc/passwd"), id="link-elsewhere"),
        pytest.param(lambda path: path.symlink_to("/proc/self/mem"), id="memory"),
        pytest.param(lambda path: (path.touch(), os.truncate(path, 1 << 40)), id="huge"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * 8 + b"{}" * 99), id="huge-header"),
    ],
)
def test_whatever_lies_in_a_streams_place_is_refused_set_aside_and_makes_way(
    tmp_path, folder, method, put
):
    """At once, without reading it whole or waiting for a writer; the stream is saved after all."""
    path = tmp_path / "gate.safetensors"
    put(path)
    there = path.lstat()
    held = folder()
    assert held.size("gate") < 10_000  # no room is made for it
    fresh = method.fork()
    with pytest.raises(StateError, match=r"gate\.safetensors"):
        held.load("gate", fresh)
    assert fresh.version == 0
    assert held.set_aside("gate").lstat().st_ino == there.st_ino
    held.save("gate", method)
    assert held.size("gate") == path.stat().st_size > 0
    assert held.load("gate", fresh)
    assert fresh.version == method.version


def test_a_folder_that_is_gone_has_no_streams_to_load(tmp_path, folder, method):
    """Deleted under a running service: nothing to restore, and no failure."""
    held = folder(tmp_path / "states")
    empty(tmp_path / "states")
    assert not held.load("gate", method.fork())
    assert held.size("gate") == 0
    held.remove("gate")
    held.sync()
    with pytest.raises(OSError, match="states"):
        held.names()


def test_a_removed_state_is_gone_and_what_it_held_is_told(tmp_path, folder, method):
    """Of one of another method nothing is told: it is not the stream's."""
    held = folder()
    held.save("gate", method)
    assert held.counts("gate", method) == (method.version, method.pending_batches) == (3, 0)
    held.remove("gate")
    assert held.names() == []
    held.save("gate", create("tent", method.model))
    with pytest.raises(StateError, match="was saved for"):
        held.counts("gate", method)


# `ttc state`


def test_ttc_state_says_a_sentence_for_each_file_and_goes_on(tmp_path, folder, method):
    """Good ones on one channel, others on the other, exit status 1; a folder in use is read."""
    folder().save("gate", method)
    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 99)
    (tmp_path / "dir.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "a\x1b[2J\n.safetensors").write_bytes(b"")
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.safetensors", os.O_CREAT))
    done = CliRunner().invoke(cli, ["state", str(tmp_path)])
    assert done.exit_code == 1
    assert [line for line in done.stdout.splitlines() if "gate" in line]
    sentences = done.stderr.splitlines()
    assert len(sentences) == 6
    assert all(line.isprintable() and line.endswith(".") for line in sentences)


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_ttc_state_moves_no_cursor(tmp_path, folder, method, options):
    """What a stranger wrote in a header is not shown to a terminal as it is, nor as markup."""
    folder().save("gate", method)
    file = tmp_path / "gate.safetensors"
    content = load_file(file)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    header |= {
        "method": "\x1b[2Jtent\r\n[/red]",
        "counters": '{"a": {"\\u202e": "\\u0007", "b": NaN}}',
    }
    save_file(content, file, header)
    done = CliRunner().invoke(cli, ["state", str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "[/red]" in done.stdout
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())
    if options:
        assert json.loads(done.stdout)["counters"]["a"]["b"] is None


@pytest.mark.parametrize("path", ["x" * 5000, "/proc/self/mem", "/dev/zero", "/etc/passwd/x"])
def test_ttc_state_of_what_is_no_folder_is_a_sentence(path):
    """Whatever the path is."""
    done = CliRunner().invoke(cli, ["state", path])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit | StateError)
