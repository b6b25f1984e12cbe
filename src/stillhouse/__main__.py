"""Run the command line `stillhouse` as `python -m stillhouse`."""

import sys

from stillhouse.cli import main

sys.exit(main())
