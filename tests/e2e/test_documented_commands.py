"""The commands of README, docs and runbooks do what is said of them, with tokens and without."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from service.cli import cli
from service.client import Client
from service.launch import launch
from service.schemas import EstimatedAccuracy, ReloadResponse, StreamAct
from tests.fixtures.requests import ask, at_rest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docker" / "runbooks").glob("*.md")),
]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
DOCS = ROOT / "docs"
# Those whose requests have a test of their own.
ALONE = {DOCS / f"{name}.md" for name in ("asking", "saved-streams", "tutorial", "v2")}
SAMPLE = re.compile(r"^```json\n(.*?)^```", re.DOTALL | re.MULTILINE)
TOKEN, ADMIN = "open sesame", "open the safe"
OURS = re.compile(r"(http://127\.0\.0\.1:800[02]|\blocalhost:8000)(?=/)")


def blocks(page):
    return BLOCK.findall(page.read_text())


def curls(page):
    """What asks the service by curl: the end of a block, or a line within a sentence."""
    found = [block[block.index("curl ") :] for block in blocks(page) if "curl " in block]
    return found + re.findall(r"`(curl [^`]+)`", page.read_text())


@pytest.fixture
def shell(tmp_path, pictures):
    """Run a page's command against a server; its standard output, of what has not failed."""
    if not os.environ.get("CI") and not (shutil.which("curl") and shutil.which("jq")):
        pytest.skip("no curl, or no jq, here")
    (tmp_path / "photo.jpg").write_bytes(pictures[0])

    def run(command, url, **tokens):
        command = OURS.sub(url, command).replace("NAME", "gate").replace(" -fsS ", " -sS ")
        strict = 'set -o pipefail\ncurl() { command curl --fail-with-body "$@"; }\n'
        done = subprocess.run(
            ["bash", "-c", strict + command],
            cwd=tmp_path,
            env={**os.environ, **tokens},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("guarded", [True, False], ids=["tokens", "no-token"])
def test_what_runbooks_ask_the_service_is_answered(
    serve, make_method, pictures, shell, often_kept, guarded
):
    """One after another, where both tokens are asked for, also by what is read; and where none."""
    protected = {"token": TOKEN, "admin_token": ADMIN, "token_reads": True} if guarded else {}
    given = {"TTC_TOKEN": TOKEN, "TOKEN": ADMIN} if guarded else {"TTC_TOKEN": "", "TOKEN": ""}
    commands = [each for page in PAGES[1:] if page not in ALONE for each in curls(page)]
    assert len(commands) > 15
    method = make_method("ttc", guard="on", samples_per_step=10)
    with serve(source=method, max_batch=10, **protected) as running:
        running.http.headers["Authorization"] = f"Bearer {TOKEN}"
        for command in commands:
            if "/snapshots" in command or "/rollback" in command:
                for at in range(0, 120, 10):
                    ask(running, pictures[at : at + 10], params={"stream": "gate"})
                running.at_rest()
            shell(command, running.url, **given)


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "asking.md"], ids=["README", "asking"])
def test_what_a_page_asks_the_service_is_answered_as_it_says(serve, shell, page):
    """The answers have the fields that stand below the commands, and a label finds its image."""
    shown = samples(page)
    with serve("ttc_stream") as running:
        answers = [json.loads(shell(each, running.url)) for each in curls(page)]
    assert [shape(answer) for answer in answers] == [shape(each) for each in shown]
    assert [each["taken"] for each in answers[1:]] == [1] * (len(answers) - 1)


def test_other_weights_are_told_as_the_page_says():
    """What POST /model does is in test_reload.py."""
    (shown,) = samples(DOCS / "saved-streams.md")
    assert shown.keys() == ReloadResponse.model_fields.keys()


def test_what_an_operator_reads_has_the_names_of_the_status():
    """Of streams below the source; that its command runs is among the other pages' commands."""
    (shown,) = samples(DOCS / "guard.md")
    assert shown["estimated"].keys() == EstimatedAccuracy.model_fields.keys()
    assert {name for act in shown["done"] for name in act} == set(StreamAct.model_fields)


def test_every_sample_of_an_answer_is_held_against_one():
    """No page shows one that no test of this file reads."""
    read = {page for page in PAGES if samples(page)}
    alone = {DOCS / f"{name}.md" for name in ("asking", "saved-streams", "tutorial", "guard")}
    assert read == {ROOT / "README.md", *alone}


def samples(page):
    """The answers that a page shows; what it leaves out is marked by an ellipsis."""
    return [json.loads(text.replace(", …]", "]")) for text in SAMPLE.findall(page.read_text())]


def shape(answer):
    """The names in an answer, whatever their values."""
    if isinstance(answer, dict):
        return {name: shape(value) for name, value in answer.items()}
    return [shape(answer[0])] if isinstance(answer, list) and answer else None


def test_what_the_page_of_v2_asks_is_answered(serve, shell):
    """Metadata, and a bare body with its stream in a header."""
    (block,) = blocks(ROOT / "docs" / "v2.md")
    with serve(method="ttc") as running:
        assert '"probabilities"' in shell(block, running.url)
        assert running.at_rest()["streams"]["gate-4"]["images"] == 1


def lines_of_ttc():
    """The command lines of ttc in blocks, and in sentences, which may leave out what is clear."""
    for page in PAGES:
        whole = "\n".join(blocks(page)).replace("\\\n", " ")
        found = dict.fromkeys(re.findall(r"^\s*ttc (.+)$", whole, re.MULTILINE), False)
        said = re.findall(r"`ttc ([a-z]+ [^`]+)`", page.read_text().replace("\n", " "))
        for line, is_partial in {**dict.fromkeys(said, True), **found}.items():
            words = shlex.split(line.partition(">")[0].removesuffix("&"), comments=True)
            yield pytest.param(words, is_partial, id=f"{page.stem}: {' '.join(words)}")


@pytest.mark.parametrize(("words", "is_partial"), list(lines_of_ttc()))
def test_a_documented_command_line_is_one(words, is_partial, tmp_path, monkeypatch):
    """Its options exist and take what they are given; what it names in capitals is the reader's."""
    monkeypatch.chdir(tmp_path)
    words = ["DATA" if word == "$to" else word for word in words if word != "--help"]
    parse(words, is_partial)


@pytest.mark.parametrize("line", ["serve --gard off", "evaluate --adapt now", "stat FILE"])
def test_a_sentence_may_leave_out_words_and_invent_none(line):
    with pytest.raises((click.UsageError, KeyError)):
        parse(line.split(), is_partial=True)


def parse(words, is_partial):
    """Options are read before what is missing is seen, so that all which stand there are."""
    try:
        command, rest = cli.commands[words[0]], words[1:]
        while isinstance(command, click.Group) and rest:
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], rest).close()
    except click.MissingParameter:
        if not is_partial:
            raise


TUTORIAL = (DOCS / "tutorial.md").read_text()
STEP = re.compile(r"^```(sh|python|json)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SERVE = "ttc serve --model"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a network is trained, the doctor tries each method
def test_the_tutorial_does_what_it_says(tmp_path, monkeypatch):
    """From its text alone, in an empty folder: files are saved, commands run one after another, the
    service is started, ended by Ctrl-C and started again. Its installation is test_package.py's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    steps = list(STEP.finditer(TUTORIAL))
    assert "pip install ." in steps.pop(0)[2]
    said = ""
    with contextlib.ExitStack() as servers:
        running = None
        for step in steps:
            kind, text = step.groups()
            if running is not None:
                text = text.replace("http://127.0.0.1:8000", running.url)
                text = text.replace("ttc replay ", f"ttc replay --url {running.url} ")
            if kind == "python":
                (name,) = re.findall(r"`(\w+\.py)`", TUTORIAL[: step.start()])[-1:]
                (tmp_path / name).write_text(text)
            elif kind == "json":
                assert shape(json.loads(said)) == shape(json.loads(text))
            elif text.startswith(SERVE):
                words = shlex.split(text)[2:]
                running = servers.enter_context(launch(*words))
            else:
                if text.startswith("ttc state"):  # said just before it
                    running.process.send_signal(signal.SIGINT)
                    assert running.process.wait(60) == 0
                said = in_bash(text)
        picture = sorted(Path("clothes/fog/Sneaker").iterdir())[0]
        with Client(running.url) as client:
            client.predict(picture, stream="gate-4")
            assert at_rest(client).streams["gate-4"].images == 102  # it goes on where it stood


def in_bash(command):
    """Its standard output; it has not failed."""
    done = subprocess.run(
        ["bash", "-c", f"set -eo pipefail\n{command}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
