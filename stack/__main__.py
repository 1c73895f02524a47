"""Make what docker-compose.yml needs where no registry of images can be reached.

python -m stack                     # into build/stack; the first time some two minutes
. build/stack/environment           # podman, podman-compose and buildah now work in there
podman-compose up --detach ttc prometheus alertmanager
"""

import sys
from importlib import metadata

from stack.engine import Engine, missing
from stack.stand_ins import ROOT, TORCH, link_torch, make_base, make_monitors

FOLDER = ROOT / "build" / "stack"


def configured() -> Engine:
    """Podman in build/stack, with the torch that runs this bound in."""
    torch = FOLDER / f"torch-{metadata.version('torch')}"
    engine = Engine(FOLDER, {torch: TORCH})
    engine.configure()
    if not torch.exists():
        link_torch(torch)
    return engine


def main() -> None:
    """Make it, or say what is missing; say what to do next."""
    if packages := missing():
        sys.exit(f"Not installed (Debian packages): {' '.join(packages)}.")
    engine = configured()
    make_monitors(engine)
    make_base(engine)
    print(__doc__)


if __name__ == "__main__":
    main()
