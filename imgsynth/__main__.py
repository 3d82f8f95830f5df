"""``python -m imgsynth``: the command line without its script, as launchers need it."""

import sys

from imgsynth.cli import main

if __name__ == "__main__":
    sys.exit(main())
