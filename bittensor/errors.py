"""Errors that belong to BitTensor itself. Bad arguments raise plain TypeError and ValueError."""


class BackendError(RuntimeError):
    """A backend could not be found, loaded or used."""


class UnknownBackendError(BackendError, ValueError):
    """The requested backend name is not installed; the message lists the names that are."""


class BackendLoadError(BackendError):
    """The backend is installed but could not be loaded; the message gives the cause."""


class UnsupportedOperationError(BackendError, NotImplementedError):
    """The backend does not declare the requested operation, bit width or device."""
