"""Errors that belong to BitTensor itself. Bad arguments raise plain TypeError and ValueError."""


class BackendError(RuntimeError):
    """A backend could not be found, loaded or used."""


class UnknownBackendError(BackendError, ValueError):
    """The requested backend name is not installed; the message lists the names that are."""


class BackendLoadError(BackendError):
    """The backend is installed but could not be loaded; the message gives the cause."""


class UnsupportedOperationError(BackendError, NotImplementedError):
    """The backend does not declare the requested operation, bit width or device."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be read or written; the message names the file, the tensor if it is one, and the reason.

    Attributes:
        path: the file or directory.
        tensor: name of the tensor, or None.
        reason: what is wrong.
    """

    def __init__(self, path: object, reason: str, tensor: str | None = None) -> None:
        self.path = path
        self.tensor = tensor
        self.reason = reason
        place = f"{path}" if tensor is None else f"{path}, tensor {tensor!r}"
        super().__init__(f"{place}: {reason}")
