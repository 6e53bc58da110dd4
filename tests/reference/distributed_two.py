"""One of two processes that find out everything that default tests ask of two; argv: where to save, folder for runs."""

import sys
from pathlib import Path

import distributed_ddp
import distributed_loop
import torch
from distributed_refusals import refusals
from ranks import COLLECTIVE_TIMEOUT_S

import featherweight as fw


def main() -> None:
    torch.set_num_threads(1)
    fw.distributed.start(timeout_s=COLLECTIVE_TIMEOUT_S)
    folder = Path(sys.argv[2])
    replicas = distributed_ddp.findings(distributed_ddp.SHORT)
    found = {"replicas": replicas, "recipes": distributed_loop.findings(folder), "refused": refusals(folder)}
    torch.save(found, f"{sys.argv[1]}-{fw.distributed.rank()}")
    fw.distributed.stop()


if __name__ == "__main__":
    main()
