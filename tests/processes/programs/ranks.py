"""One rank of a torchrun job: agree on the platform through gloo; argument: who is to differ."""

import json
import os
import sys

import torch
import torch.distributed as dist

from mainboard.plugins import prepare_worker


def main():
    """Rank 0 prints what every rank has, after a sum over all of them."""
    if os.environ["RANK"] == sys.argv[1]:
        os.environ["SHAPE_DEVICES"] = ""
    prepare_worker()
    import report
    import shape_skips_known

    dist.init_process_group("gloo")
    mine = [*report.platform(), shape_skips_known.calls]
    everybody = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    total = torch.ones(1)
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        print(json.dumps({"ranks": everybody, "sum": total.item()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
