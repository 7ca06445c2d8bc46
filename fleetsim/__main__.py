"""``python -m fleetsim``."""

from fleetsim.cli.main import main

if __name__ == "__main__":
    main()
