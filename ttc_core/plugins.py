"""Things of a user's own, named on the command line as package.module:attribute.

Their code may do anything while it is imported or called. What it raises becomes a sentence; what
it changes in the process, and would change answers or the program's end, is put back.
"""

import ast
import contextlib
import gc
import hashlib
import importlib.util
import inspect
import io
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

from ttc_core.errors import PluginError, UserError, told

# Where packages are installed to, each of which is somebody else's.
INSTALLED = ("site-packages", "dist-packages")
OURS = ("ttc_core", "service")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def import_attribute(spec: str) -> Any:
    """Return what `package.module:attribute` (or `:Class.attribute`) names.

    Raises:
        PluginError: the module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise PluginError(f"{spec} cannot be imported; expected is package.module:attribute.")
    with guarded(f"{spec} cannot be imported"):
        found: Any = importlib.import_module(module_name)
        # Another module of that name may have come first, one of Python's own, say.
        place = getattr(found, "__file__", None) or "built in"
        for name in attribute.split("."):
            if not hasattr(found, name):
                raise PluginError(
                    f"{spec} cannot be imported: {module_name} ({place}) has no {name!r}."
                )
            found = getattr(found, name)
    return found


def call_factory(spec: str) -> Any:
    """Call what `package.module:attribute` names, without arguments.

    Raises:
        PluginError: it cannot be imported or called, fails, or returns something to be awaited.
    """
    factory = import_attribute(spec)
    # A network is callable, too, but calling it makes none.
    if not callable(factory) or (hasattr(factory, "forward") and not isinstance(factory, type)):
        raise PluginError(
            f"{spec} is no function or class but an object ({type(factory).__name__}); name a "
            "function without arguments that returns it."
        )
    with guarded(f"{spec}() failed"):
        made = factory()
    if inspect.iscoroutine(made):
        made.close()
        raise PluginError(f"{spec} is an async function; expected is a plain one.")
    return made


def source_digest(spec: str) -> str | None:
    """A hash of the code behind `package.module:attribute[@FILE]`; None for all other specs.

    It is of the module's file and of what it imports, wherever in its code, from the package or
    folder that it lies in, and so on; not of what is installed beside it. Nothing is run.
    """
    name, colon, _ = spec.partition("@")[0].partition(":")
    origin = getattr(sys.modules.get(name), "__file__", None)
    if not colon or origin is None:
        return None
    file, top = Path(origin), name.partition(".")[0]
    root = file.parents[name.count(".") + (file.stem == "__init__")]
    alone = root.name in INSTALLED
    sources: dict[str, bytes] = {}
    pending = [name]
    while pending:
        each = pending.pop()
        first = each.partition(".")[0]
        if not each or each in sources or (first != top and (alone or first in OURS)):
            continue
        place, parent = root.joinpath(*each.split(".")), each.rpartition(".")[0]
        for package, path in ((parent, f"{place}.py"), (each, f"{place}/__init__.py")):
            with contextlib.suppress(OSError, ValueError, SyntaxError, ImportError):
                sources[each] = Path(path).read_bytes()
                pending += [parent, *_imported(sources[each], package)]
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:16]


def _imported(source: bytes, package: str) -> Iterator[str]:
    """The names of all modules that code of a package may import; some name no module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Run code of a user's own.

    It reads nothing from standard input, and what it prints goes to standard error. The working
    directory, signal handlers, logging, warnings, the interpreter's limits and torch's defaults are
    afterwards as they were.

    Args:
        what: begins the sentence.

    Raises:
        PluginError: it raised anything but KeyboardInterrupt and our own errors, which pass.
    """
    try:
        with _process_kept(), torch_kept(), contextlib.redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, UserError):
        raise
    except BaseException as error:  # whatever the user's own code does
        raise PluginError(f"{what}: {told(error)}.") from error


def _loggers() -> dict[logging.Logger, dict[str, Any]]:
    """What decides, for each logger there is, whether and where its lines are shown."""
    names = ("level", "disabled", "propagate", "handlers", "filters")
    return {
        logger: {name: copy(getattr(logger, name)) for name in names}
        for logger in (logging.root, *logging.root.manager.loggerDict.values())
        if isinstance(logger, logging.Logger)
    }


def _put_loggers(before: dict[logging.Logger, dict[str, Any]]) -> None:
    for logger, values in before.items():
        logger.setLevel(values["level"])  # what it has remembered of its level goes, too
        vars(logger).update(values)


# Much that scripts do at their top: a stranger's nested JSON would then end the process, say.
_KEPT: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (gc.isenabled, lambda was: gc.enable() if was else gc.disable()),
    (lambda: logging.root.manager.disable, logging.disable),
    (_loggers, _put_loggers),
)


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    streams = sys.stdin, sys.stderr
    folder = _working_directory()
    # Handlers can be set from the main thread alone.
    handled = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in handled}
    before = [get() for get, _ in _KEPT]
    sys.stdin = io.StringIO()  # a question would wait for an answer for ever
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.stdin, sys.stderr = streams
        for (_, put), value in zip(_KEPT, before, strict=True):
            put(value)
        if folder is not None and _working_directory() != folder:
            with contextlib.suppress(OSError):
                os.chdir(folder)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


@contextlib.contextmanager
def torch_kept() -> Iterator[None]:
    """Put back what would change the answers of other code, or how fast they come."""
    if "torch" not in sys.modules:  # it takes seconds to import, and not every verb needs it
        yield
        return
    import torch

    kept: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (
            lambda: torch.empty(0).device,  # the default one
            lambda was: torch.set_default_device(None if was.type == "cpu" else was),
        ),
    )
    before = [get() for get, _ in kept]
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        for (get, put), value in zip(kept, before, strict=True):
            if get() != value:
                put(value)
