"""`python -m lightning_freeze`."""

import sys

from lightning_freeze.cli import main

sys.exit(main())
