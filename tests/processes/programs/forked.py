"""Fork while another thread is registering a model; the child registers one of its own."""

import json
import os
import signal
import threading

from mainboard import ModelRegistry
from mainboard.plugins import prepare_worker


def main():
    """Print which models the child has."""
    held, leave = threading.Event(), threading.Event()

    def hold():
        with ModelRegistry._lock:
            held.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    ModelRegistry.register_model("Before", "somewhere:Before")
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        prepare_worker()
        print(json.dumps(list(ModelRegistry.get_supported_archs())), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    leave.set()
    thread.join()
    raise SystemExit(status)


if __name__ == "__main__":
    main()
