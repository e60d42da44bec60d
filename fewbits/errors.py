"""One family of errors: what was received, what is allowed, what to do, which file and layer."""


class FewbitsError(Exception):
    """Base of every error fewbits raises on purpose; the command line prints it as one line."""


class InputError(FewbitsError, ValueError):
    """The user's input or arguments are wrong; nothing was written (exit code 2)."""


class MissingExtraError(InputError):
    """A library that this task needs is not installed; the message has the install command."""


class VerificationError(FewbitsError):
    """A file fewbits wrote does not do what its plan says; the file is not handed over."""


class EngineError(FewbitsError):
    """An engine could not compile or run an artifact; the message is the engine's own first line."""
