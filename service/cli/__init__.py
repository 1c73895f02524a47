"""The command line: `ttc serve | replay | evaluate | report | corrupt | train | …`.

Each verb is a file; it checks what it was given, calls one function of another room, and shows
what came of it.
"""

import contextlib
import os
import sys

INTERRUPTED = "ttc: interrupted; finished rows are kept."

try:
    import click

    from service.cli.calibrate import calibrate
    from service.cli.changes import changes
    from service.cli.completion import completion
    from service.cli.config import config
    from service.cli.corrupt import corrupt
    from service.cli.demo import demo
    from service.cli.doctor import doctor, explain
    from service.cli.envelope import envelope
    from service.cli.evaluate import evaluate
    from service.cli.replay import replay
    from service.cli.report import report
    from service.cli.serve import serve
    from service.cli.state import state
    from service.cli.train import train
    from ttc_core.errors import UserError
except KeyboardInterrupt:  # so early, too, it is no mistake of ours that needs a trace
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)


def main() -> None:
    """Run the command line. Exit status 0 done, 2 wrong usage, 1 anything else, 130 interrupted."""
    _open_streams()
    try:
        sys.path.append(os.getcwd())  # so that package.module:factory finds one's own module
    except OSError:  # torch's libraries end the process there, without a word of ours
        _say("ttc: the working directory is not there any more; change to another.")
        _end(1)
    _end(_run())


def _run() -> int:
    try:
        status = int(cli.main(standalone_mode=False) or 0)
        sys.stdout.flush()
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return error.exit_code
    except BrokenPipeError:  # `ttc … | head`: whoever read has had enough
        return 1
    except UserError as error:  # anything else is our mistake and keeps its trace
        _say(f"ttc: {error}")
        return 1
    except OSError as error:  # a full disk, a file that may not be read
        where = "" if error.filename is None else f"{error.filename}: "
        _say(f"ttc: {where}{error.strerror or error}.")
        return 1
    except (KeyboardInterrupt, click.Abort):
        _say(INTERRUPTED)
        return 130
    return status


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(sentence, err=True)


def _open_streams() -> None:
    """See to it that there are streams 0 to 2, which take every character.

    Else a rows file could become stream 1, and be written to by whatever prints.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open to the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _end(status: int) -> None:
    """Exit; what cannot be said any more is not tried again by the interpreter."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            status = status or 1
    sys.exit(status)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ttc-service", prog_name="ttc")
def cli() -> None:
    """Image classification that keeps adapting to the images it is asked about."""


for verb in (
    *(serve, config, replay, evaluate, report, corrupt, train, calibrate, demo, doctor, state),
    changes,
    explain,
    envelope,
    completion,
):
    cli.add_command(verb)
