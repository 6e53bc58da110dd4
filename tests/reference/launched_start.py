"""A process that joins its group and leaves it again, as a program of one's own does; says what keeps it from that."""

import sys

import featherweight as fw
from featherweight.distributed.world import is_told_elsewhere
from featherweight.errors import FeatherweightError

if __name__ == "__main__":
    try:
        fw.distributed.start(timeout_s=8)
    except FeatherweightError as error:
        if not is_told_elsewhere(error):
            sys.stdout.write(f"{error}\n")
        sys.exit(1)
    fw.distributed.stop()
