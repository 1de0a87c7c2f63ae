"""The exception for what a user can put right: entry points print its sentence, bugs keep their traceback."""


class InputError(ValueError):
    """A wrong input: the message says what was wrong, where, and what to do, in one sentence."""
