"""Ctrl-C in a command, before and outside of training; imports nothing, so that it comes first."""

import signal


def end_on_interrupt() -> None:
    """Lets Ctrl-C end this process at once, unless its parent has it ignored.

    As Python's KeyboardInterrupt it is lost where it meets one of JAX's callbacks, and the command
    would go on. Training catches the signal itself, to save first.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
