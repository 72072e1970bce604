"""What a process owes to the one that started it."""

import os
import signal
import threading
import time


def follow_parent(parent: int) -> None:
    """Leave Ctrl-C to the parent process, and end when it is gone, which a killed parent cannot ask for.

    Args:
        parent: its id.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()
