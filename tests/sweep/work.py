"""What the trials of these tests do: what their config says, in a process of their own."""

import json
import os
import time
from pathlib import Path

from framework.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, EXIT_USER
from framework.launch.jobs import REPORTS, Job, Result, Status
from framework.record.interrupts import INTERRUPTS


def run(folder: Path) -> int:
    """Report `values`, `pause` seconds apart, and end as `how` says; metrics are `x` and the last value."""
    job = Job(folder)
    began = time.time()
    with job.lock(), INTERRUPTS, INTERRUPTS.deferred():
        config = job.config()
        with (folder / "began").open("a") as file:
            file.write(f"{job.attempt}\n")
        last = 0.0
        for step, value in enumerate(config.get("values", []), start=1):
            time.sleep(config.get("pause", 0.0))
            last = value
            with (folder / REPORTS).open("a") as file:
                file.write(json.dumps({"step": step, "metrics": {"val/x": value}}) + "\n")
        end = began + config.get("seconds", 0.0)
        while time.time() < end and INTERRUPTS.requested is None:
            time.sleep(0.01)
        status, code, error = Status.completed, EXIT_DONE, None
        if INTERRUPTS.requested is not None:
            asked = job.asked_to_stop()
            status, error = asked or (Status.preempted, "stopped by a signal")
            code = EXIT_PREEMPTED
        elif config.get("how") == "die" and job.attempts <= config.get("times", 99):
            os.kill(os.getpid(), 9)
        elif config.get("how") == "eat":
            try:
                bytearray(int(config.bytes))
            except MemoryError:
                status, code, error = Status.failed, EXIT_FAILED, "MemoryError"
        elif config.get("how") == "raise":
            print("a word before the end")
            status, code, error = Status.failed, EXIT_FAILED, "RuntimeError: out of luck"
        elif config.get("how") == "mistake":
            status, code, error = Status.mistaken, EXIT_USER, "x: is wrong"
        metrics = {"x": float(config.get("x", 0.0)), "val/x": float(last)}
        job.write_result(Result(job.attempt, status, code, error, str(folder), metrics, began, time.time()))
    return code
