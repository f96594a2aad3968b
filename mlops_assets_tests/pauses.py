"""Random pauses in every thread of the tests, as a busy machine makes them: they show what counts on timing.

MLOPS_TEST_PAUSES=SECONDS asks for them: so long is it from one to the next in a thread, on average.
"""

import random
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

LONGEST_SECONDS: Final = 0.3
_PLACES: Final = (f"{Path(__file__).parents[1]}/mlops_assets/", f"{Path(__file__).parent}/")
_thread = threading.local()


def start(seconds: float) -> None:
    """Pause at calls of the platform's functions and the tests', in this thread and in those that begin later."""

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(_PLACES):
            return
        if time.perf_counter() >= getattr(_thread, "due", 0.0):
            sleep(random.uniform(0, LONGEST_SECONDS))
            _thread.due = time.perf_counter() + random.expovariate(1 / seconds)

    sleep = time.sleep  # tests put others in its place
    threading.setprofile(called)
    sys.setprofile(called)
