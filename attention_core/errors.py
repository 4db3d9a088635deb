"""The errors of the mathematics."""


class BackendError(NotImplementedError):
    """The backend asked for cannot do this job; the message says what it lacks."""
