"""Run `python -m server`: the same as the command `flux2-serve`."""

from server.cli import main

if __name__ == "__main__":
    main()
