"""`ttc doctor` and `ttc explain`: whether this installation, model and data can serve."""

import json
import sys
from typing import Any

import click

from service.cli.options import COUNT, SEED, ModelOptions, grouped, load_model, rgb

SHOWN = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
INDENT = "\n" + " " * 15


@click.command(
    epilog="Example: ttc doctor --model torchvision/resnet18@weights.pt --data folder:DIR"
)
@click.option("--data", help="labelled images, as in ttc evaluate: folder:DIR, …")
@click.option(
    "--images", type=COUNT, default=400, show_default=True, help="look at so many of the data"
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="which ones")
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@grouped("network", ModelOptions)
def doctor(data: str | None, images: int, seed: int, as_json: bool, network: ModelOptions) -> None:
    """Check whether a model can be served here, and how: versions, device, the model, its layers
    and speed; with --data also whether it is fed as it was trained, and what each method brings.

    It ends in the command to start with. Exit status 1 where something is a PROBLEM; ttc explain
    CODE tells what a check means and what to do.
    """
    import torch

    from service.doctor.asked import Asked
    from service.doctor.examination import examine

    if network.threads:
        torch.set_num_threads(network.threads)
    asked = Asked(
        network.model,
        lambda **changed: _load(network, changed),
        _options(network),
        network.device,
        data,
        images,
        seed,
        lambda sentence: click.echo(sentence, err=True),
    )
    findings = []
    for finding in examine(asked):
        findings.append(finding)
        if not as_json:
            sentence = finding.sentence.replace("\n", INDENT)
            click.echo(f"{SHOWN[finding.verdict]}  {finding.code}  {sentence}")
    problems = [finding for finding in findings if finding.verdict == "problem"]
    if as_json:
        found = [{**vars(finding), "title": finding.title} for finding in findings]
        command = findings[-1].numbers.get("command")
        click.echo(json.dumps({"findings": found, "problems": len(problems), "command": command}))
    if problems:
        first = problems[0].code
        click.echo(
            f"Something above needs attention; ttc explain {first} says what to do.", err=True
        )
        sys.exit(1)


def _load(network: ModelOptions, changed: dict[str, Any]) -> Any:
    """Load the model with what is changed in place of the options."""
    usual: dict[str, Any] = {
        "mean": rgb(network.mean),
        "std": rgb(network.std),
        "precision": network.precision,
        # A record is of one normalisation.
        "calibration": None if "mean" in changed else network.calibration,
        "size": network.size,
        "crop": network.crop,
        "interpolation": network.interpolation,
        "class_names": network.class_names,
        "trust_code": network.trust_code,
        "warn": lambda _: None,  # notices are among the findings
    }
    return load_model(network.model, network.device, **(usual | changed))


def _options(network: ModelOptions) -> dict[str, str | None]:
    """Those of `ttc serve` that were given, by their flags."""
    usual = {"device": "auto", "precision": "float32", "threads": 0, "trust_code": False}
    return {
        f"--{name.replace('_', '-')}": None if value is True else str(value)
        for name, value in vars(network).items()
        if name != "model" and value is not None and value != usual.get(name)
    }


@click.command(epilog="Example: ttc explain T303")
@click.argument("code", required=False)
def explain(code: str | None) -> None:
    """Tell what a check of ttc doctor means and what to do; without CODE list them all."""
    from service.doctor.checks import CHECKS, find_check

    if code is None:
        for check in CHECKS.values():
            click.echo(f"{check.code}  {check.title}")
        return
    check = find_check(code)
    click.echo(f"{check.code}  {check.title}\n\n{check.explanation}")
