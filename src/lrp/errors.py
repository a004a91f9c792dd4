"""The exceptions, one class per package; and an OSError as one of them, or as a clause.

Every message states what was expected, what was received, where, what to do.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LrpError(Exception):
    """Base of every error that `lrp` raises on purpose. The command line prints it as one line."""


class RuleError(LrpError):
    """A rule was given values, or an operation, for which its equation is not defined."""


class CaptureError(LrpError):
    """The model could not be turned into a graph of operations."""


class UnsupportedError(LrpError):
    """The graph holds operations without a rule. Raised before anything runs, listing all of them."""


class CompositeError(LrpError):
    """A composite or preset does not fit the model it is applied to, or is itself malformed."""


class OptionError(LrpError):
    """An option was given a value that it cannot have. The message begins with the option's name."""


class InputError(LrpError):
    """The images handed to an explainer cannot be explained: wrong shape, not finite, an empty batch."""


class TargetError(LrpError):
    """The target names no output of the model, or several."""


class LedgerError(LrpError):
    """A ledger was requested after the model or the images it belongs to had changed."""


class ModelError(LrpError):
    """A model, its weights or its preprocessing could not be found, fetched, verified or loaded."""


class ImageError(LrpError):
    """A file is not a photo that can be read safely."""


class DataError(LrpError):
    """A data set, or its archive, is not what was expected, or fits no class of the model."""


class BusyError(LrpError):
    """Another run, here or in another process, is writing the same output."""


class PredictionsError(LrpError):
    """A predictions CSV cannot be read, written, or continued."""


class TrainingError(LrpError):
    """The data or settings of a training are not what was expected, or training failed."""


class ReportError(LrpError):
    """A report cannot be made, or written."""


class ExportError(LrpError):
    """The explanation program could not be written as a file that runs elsewhere."""


DETECTOR = (
    "is a detector: it returns boxes, and a map needs logits [N, K]: take a module that returns, of its backbone and its "
    "classification head, each class's largest logit over the anchors; the page docs/detectors.md has it for RetinaNet and FCOS."
)
"""The end of a sentence, for the engine and for models by name."""


@contextmanager
def os_errors(path: Path, done: str, error: type[LrpError] | None, advice: str = "") -> Iterator[None]:
    """An OSError inside is raised as `error`: "PATH: cannot be DONE: REASON"; None: as it is."""
    try:
        yield
    except OSError as os_error:
        if error is None:
            raise
        raise error(f"{path}: cannot be {done}: {os_error.strerror or os_error}{advice}") from os_error


def error_reason(error: BaseException) -> str:
    """An error as a clause on one line: "Name or service not known"."""
    cause = getattr(error, "reason", error)  # urllib wraps the operating system's error
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", text.strip().splitlines()[0]).rstrip(".")
