"""`python -m mainboard` is the console script."""

import sys

from mainboard.cli import main

sys.exit(main())
