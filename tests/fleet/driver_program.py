"""A driver as a process of its own, to be killed: `driver_program.py ROOT COUNT NAME`."""

import logging
import random
import sys
import time
from pathlib import Path

from toy_children import Children, candidates, driver

from jaxbooth.fleet import driver as driver_module
from jaxbooth.fleet.store import OutputStore

if __name__ == "__main__":
    root, count, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    logging.basicConfig(level=logging.INFO)
    driver_module.POLL_S = 0.02
    store, dice = OutputStore(root), random.Random(name)
    children = Children(store, {"subject-005": 1}, by=name, before=lambda files: time.sleep(dice.random() / 20))
    outcome = driver(store, candidates(count), children, packs_per_process=2, sizes=(1, 4)).run()
    print(outcome.done, *outcome.failed)
