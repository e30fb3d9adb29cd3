"""`python -m coordinator.cli`: the same as `localmodel`."""

import sys

from coordinator.cli import main

sys.exit(main())
