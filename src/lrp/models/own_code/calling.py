"""Calls the user's own code: "package.module:function", importable from the working directory."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrp.errors import ModelError
from lrp.models.downloads import Progress
from lrp.models.own_code.files import is_users_file

_SAID = set[str]()  # what this process has been told


def is_own_code(name: str) -> bool:
    """Whether `load_model` takes this for a function of the user's: by its name alone."""
    module, colon, function = name.partition(":")
    parts = [*module.split("."), function]
    return bool(colon) and module not in ("timm", "hf") and all(part.isidentifier() for part in parts)


def call_own_code(name: str, progress: Progress) -> Any:
    """What the function returns; says once that it is run.

    The working directory is put first where Python looks for modules, as `python -m` does, and stays there: processes that are
    started from this one look there too.

    Raises:
        ModelError: there is no such module or function, it cannot be called without arguments, or it raises.
    """
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    file = _file_of(name, module_name)
    say_once(f"{name}: running your code, {file}.", progress)
    module = _guarded(f"{name}: importing {module_name} raised", lambda: importlib.import_module(module_name))
    function = getattr(module, function_name, None)
    if not hasattr(module, function_name):
        raise ModelError(
            f"{name}: {file} has no function {function_name!r}: {_nearest(function_name, module)}"
        )
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        raise ModelError(
            f"{name}: {function_name} is a {type(function).__name__}, not a function: expected one that needs no arguments and "
            "returns the model."
        )
    if needed := _needed_arguments(function):
        raise ModelError(
            f"{name} needs arguments ({', '.join(needed)}): expected a function that needs none and returns the model."
        )
    return _guarded(f"{name} raised", function)


def say_once(sentence: str, progress: Progress) -> None:
    """Say it unless this process has."""
    if sentence not in _SAID:
        _SAID.add(sentence)
        progress(sentence)


def _file_of(name: str, module: str) -> str:
    """The file that importing the module would run; its package is imported already."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its package does not exist, or imports what does not
        spec = None
    except (Exception, SystemExit):  # its package raises: the import itself will say so
        return module
    if spec is None and module not in sys.modules:
        raise ModelError(
            f"{name}: no module {module!r} in {os.getcwd()}, and none is installed: expected MODULE:FUNCTION, which Python can import "
            "from the working directory."
        )
    return str(spec.origin if spec and spec.has_location else module)


def _guarded(what: str, call: Callable[[], Any]) -> Any:
    """The result of the user's code; whatever it raises becomes a ModelError that says where."""
    try:
        return call()
    except (Exception, SystemExit) as error:  # a script that reads its own arguments ends when it is imported
        words = " ".join(str(error).split())
        raise ModelError(
            f"{what} {type(error).__name__}{f': {words}' if words else ''}{_where(error)}."
        ) from error


def _where(error: BaseException) -> str:
    """The last line of the user's files that an error passed: " (nets.py:12)"."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users_file(f.filename)]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _nearest(function: str, module: Any) -> str:
    known = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
    near = difflib.get_close_matches(function, known, n=3)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"its functions are {', '.join(sorted(known))}." if known else "it has none."


def _needed_arguments(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in
        return []
    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in any_number]
