"""Ten replicas of Ray's killed under fifty streams, and from one to three and back, by the load.

It takes ten minutes: `make replicas` runs it, `make test` does not.
"""

from importlib.util import find_spec

import pytest
from click.testing import CliRunner

from benchmarks.replicas import main

# Not imported: what is set in the environment before counts no more then.
NO_RAY = find_spec("ray") is None
pytestmark = [
    pytest.mark.skipif(NO_RAY, reason="the extra ray is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


@pytest.mark.parametrize(
    "asked", [pytest.param(["--kills", "10"], id="kills"), pytest.param(["--scale"], id="scale")]
)
def test_all_is_answered_and_an_interval_lost_at_most(asked):
    """By what the benchmark checks: each request, each stream's steps, each file."""
    done = CliRunner().invoke(main, asked)
    print(done.output)
    assert done.exit_code == 0, done.output
    assert "images answered" in done.output
