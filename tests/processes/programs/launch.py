"""Choose a platform, then start two ranks with torchrun, as a launcher with a parent does."""

import os
import sys
from pathlib import Path

from mainboard.platforms import current_platform

if __name__ == "__main__":
    assert current_platform.device_name == "shape"
    script = Path(__file__).with_name("ranks.py")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    os.execv(sys.executable, [sys.executable, *words, *sys.argv[1:]])
