"""Command line of `make fuzz`: mutated inputs of all kinds, for a time, with a seed."""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.engine import fuzz
from tests.fuzz.targets import TARGETS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=float, default=600.0)
parser.add_argument("--seed", type=int, default=None, help="default: the time")
parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="default: all")
options = parser.parse_args()
seed = int(time.time()) if options.seed is None else options.seed
sys.exit(bool(fuzz(options.seconds, seed, options.targets or list(TARGETS))))
