"""`python -m stillhouse` is the command `stillhouse`."""

import sys

from stillhouse.cli import main

sys.exit(main())
