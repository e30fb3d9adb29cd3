"""`python -m coordinator.dev.origin`: the sample origin as a process."""

import sys

from coordinator.dev.origin.server import main

sys.exit(main())
