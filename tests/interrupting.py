"""Processes that heed Ctrl-C also where the tests run in the background, where a shell has it ignored."""

import signal


def heed() -> None:
    """For ``preexec_fn``: an ignored signal would stay ignored in the new process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
