"""`ttc doctor`: whether this installation can serve."""

import click


@click.command(epilog="Example: ttc doctor")
@click.option("--device", default="auto", show_default=True)
def doctor(device: str) -> None:
    """Check that this installation can serve: versions, device, bundled model."""
    from service.doctor import examine

    findings = examine(device)
    for finding in findings:
        click.echo(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.sentence}")
    if not all(finding.ok for finding in findings):
        raise click.ClickException("Something above needs attention.")
