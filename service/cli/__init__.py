"""The command line: `ttc serve | replay | evaluate | report | corrupt | train | demo | …`.

Each verb is a file; it checks what it was given, calls one function of another room, and shows
what came of it.
"""

import os
import sys
from pathlib import Path

import click

from service.cli.corrupt import corrupt
from service.cli.demo import demo
from service.cli.doctor import doctor
from service.cli.evaluate import evaluate
from service.cli.replay import replay
from service.cli.report import report
from service.cli.serve import serve
from service.cli.state import state
from service.cli.train import train
from service.logs import hold_standard_streams
from ttc_core.errors import UserError


def main() -> None:
    """Run the command line. Exit status 0 done, 2 wrong usage, 1 anything else, 130 interrupted."""
    hold_standard_streams()
    try:
        sys.path.append(str(Path.cwd()))  # so that package.module:factory finds one's own module
    except FileNotFoundError:
        click.echo("ttc: the working folder is gone; / is taken instead.", err=True)
        os.chdir("/")  # MKL, for one, does not start without a folder
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:  # anything else is our mistake and keeps its trace
        click.echo(f"ttc: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("ttc: interrupted; finished rows are kept.", err=True)
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ttc-service", prog_name="ttc")
def cli() -> None:
    """Image classification that keeps adapting to the images it is asked about."""


for verb in (serve, replay, evaluate, report, corrupt, train, demo, doctor, state):
    cli.add_command(verb)
