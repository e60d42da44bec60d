"""Callables to be timed in workers, most of them ill-behaved."""

import hashlib
import os
import signal
import sys
import threading
import time


def sleeping(seconds):
    return lambda: time.sleep(seconds)


def talking():
    print("printed while loading")
    os.write(1, b"written to the file descriptor\n")
    return lambda: print("printed while running")


def segfaulting():
    return lambda: os.kill(os.getpid(), signal.SIGSEGV)


def exiting():
    print("why it left", file=sys.stderr)
    os._exit(3)


def raising():
    raise ValueError("told over\ntwo lines")


def hanging_after(runs):
    naps = iter([0.01] * runs)
    return lambda: time.sleep(next(naps, 3600))


def never_idle():
    def spin():
        while True:
            hashlib.sha256(zeros)  # without the interpreter's lock

    zeros = bytes(1 << 20)
    for _ in range(16):  # one alone may have to wait for a whole moment where others work too
        threading.Thread(target=spin, daemon=True).start()
    return lambda: time.sleep(0.001)
