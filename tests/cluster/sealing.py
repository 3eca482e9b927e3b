"""`python -m tests.cluster.sealing FILE generate ...` is `psi`, but makes the file before it writes a dataset, and waits until that is removed."""

import sys
import time
from pathlib import Path

from cluster.arm import ArmFold
from cluster.cli import main
from generation.dataset import SealedDataset

if __name__ == "__main__":
    mark, write = Path(sys.argv.pop(1)), ArmFold.write

    def wait_and_write(fold: ArmFold) -> SealedDataset:
        mark.touch()
        while mark.exists():
            time.sleep(0.1)
        return write(fold)

    ArmFold.write = wait_and_write
    main()
