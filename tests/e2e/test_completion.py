"""bash, zsh and fish complete `ttc`, set up as its help says, in a terminal."""

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
PATIENCE = 60
# What moves the cursor or colours what is shown.
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\(B")
# Where `ttc completion` says that its lines belong, and what has to stand before them.
PLACES = {
    "bash": (".bashrc", ""),
    "zsh": (".zshrc", "autoload -U compinit && compinit -u\n"),
    "fish": (".config/fish/completions/ttc.fish", ""),
}


class Terminal:
    """A shell at a terminal, and what it has shown of late."""

    def __init__(self, shell, home):
        self.shown = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 400, 0, 0))
        self._process = subprocess.Popen(
            [shell, "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=home / "work",
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={
                "HOME": str(home),
                "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "TERM": "xterm",
                "LANG": "C.UTF-8",
            },
        )
        os.close(slave)
        self.type("printf '<%s>' at work\r")
        self.wait("<at><work>")

    def type(self, keys):
        os.write(self._master, keys.encode())

    def wait(self, pattern):
        """Return as soon as a pattern is found in what is shown since this was last asked."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, MOVES.sub("", self.shown)):
            assert time.monotonic() < deadline, self.shown
            if select.select([self._master], [], [], 1)[0]:
                self.shown += os.read(self._master, 65536).decode(errors="replace")
        self.shown = ""

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@pytest.fixture(scope="module", params=PLACES)
def home(request, tmp_path_factory):
    """A shell, and a home where it finds the lines that `ttc completion` prints for it."""
    shell = request.param
    if not os.environ.get("CI") and not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    home = tmp_path_factory.mktemp(shell)
    printed = subprocess.run(
        [PROGRAMS / "ttc", "completion", shell], capture_output=True, text=True, check=True
    )
    assert printed.stderr == ""
    place, before = PLACES[shell]
    (home / place).parent.mkdir(parents=True, exist_ok=True)
    (home / place).write_text(before + printed.stdout)
    (home / "work" / "a-folder").mkdir(parents=True)
    (home / "work" / "unusual.toml").touch()
    return shell, home


@pytest.fixture(scope="module")
def terminal(home):
    terminal = Terminal(*home)
    yield terminal
    terminal.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ttc ser", "serve"),
        ("ttc conf", "config"),
        ("ttc serve --max-pi", "--max-pixels"),
        ("ttc config --no-cal", "--no-calibration"),
        ("ttc serve --method ttc_", "ttc_stream"),
        ("ttc serve --port 0 --guard ob", "observe"),
        ("ttc serve --method=ttc_", "--method=ttc_stream"),
        ("ttc evaluate bundled --guard ob", "observe"),
        ("ttc serve --config unu", "unusual.toml"),
        ("ttc serve --state-dir a-f", "a-folder/?"),
        ("ttc report unu", "unusual.toml"),
        ("ttc completion fi", "fish"),
    ],
)
def test_a_shell_completes_a_verb_an_option_a_choice_and_a_file(terminal, typed, completed):
    """What the Tab key makes of a line is what is run then."""
    terminal.type(f"{typed}\t")
    # Control-A goes to the beginning of the line, and what stands there takes it as it is.
    terminal.type("\x01printf '<%s>' \r")
    before = "".join(f"<{word}>" for word in typed.split()[:-1])
    terminal.wait(rf"{before}<{completed}>")


def test_a_shell_shows_the_choices_that_there_are(terminal):
    """Where nothing is begun."""
    terminal.type("ttc serve --guard \t\t\t")  # bash: the common letter, a bell, the list
    terminal.wait(r"(?s)(?=.*\bon\b)(?=.*\boff\b).*\bobserve\b")
    terminal.type("\x03\x03")


@pytest.mark.parametrize("words", ["ttc serve --method tt", "ttc evaluate --cor", "ttc config --"])
def test_completing_imports_no_torch(words):
    """Else each Tab would take seconds."""
    program = (
        "import sys\nfrom service.cli import cli\n"
        "try: cli.main([], prog_name='ttc')\n"
        "finally: print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "_TTC_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
    )
    assert done.stdout.startswith("plain,"), done.stderr
    assert done.stderr == "False False\n"
