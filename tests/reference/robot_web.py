"""What the tests of the page share: its key, and how patient they are."""

import os

TOKEN = "the-key-of-the-tests"


def patience():
    """Return what limits of time are multiplied by: 1 on a machine with a processor to give, 5 where more work waits.

    A browser, a server and a control loop that each get a tenth of a processor say nothing about the page.
    """
    return 1 if os.getloadavg()[0] <= 1.5 * (os.cpu_count() or 1) else 5
