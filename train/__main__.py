"""`python -m manyfaces.train VERB ...` is `manyfaces VERB ...`."""

import sys

from manyfaces.train.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
