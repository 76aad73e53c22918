"""What goes wrong with weights."""

BY_HAND = 'download the file by other means and give its path'  # where we cannot


class WeightsError(ValueError):
    """A weights file, its name or its source is unusable; the message says what was found and what was expected."""


class DownloadError(WeightsError):
    """A file could not be fetched: no connection, offline mode, an HTTP error, a wrong length or a wrong hash."""


class NotFoundError(DownloadError):
    """The server has no such file or, offline, the cache has none."""


class ConversionError(ValueError):
    """A state dict does not fit the model; the message lists every key that does not."""
