"""So that `python -m service.cli` is `ttc`."""

from service.cli import main

if __name__ == "__main__":
    main()
