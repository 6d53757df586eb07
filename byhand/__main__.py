"""`python -m byhand`."""

import sys

from byhand.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
