"""Stub of another operating system for the modules of `dpo_cli`. Python imports this file at start.

DPO_TEST_PLATFORM is "darwin" or "win32". Modules of `dpo_cli` get proxies of `os`, `sys`, `signal`,
`time`, `ctypes`, `resource`, `fcntl`, `select` and `psutil` from their import statements, without
the parts that the system lacks. They find no file below /proc and /sys, whichever function of the
standard library opens it. All other modules, such as torch, see the real machine: this tests the
project's own code, not macOS or Windows.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import enum
import errno
import functools
import io
import os
import re
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

PLATFORM = os.environ.get("DPO_TEST_PLATFORM", "")

# Functions that macOS and Windows lack: https://docs.python.org/3/library/os.html, "Availability".
_NOT_ON_MACOS = {
    "os": r"memfd_create|MFD_.*|sched_(get|set).*|SCHED_(BATCH|IDLE|RESET).*|posix_f.*|POSIX_FADV.*"
    r"|pipe2|eventfd.*|EFD_.*|splice|SPLICE.*|copy_file_range|O_(PATH|TMPFILE|DIRECT|NOATIME|RSYNC)"
    r"|O_LARGEFILE|getrandom|GRND_.*|setns|unshare|CLONE_.*|pidfd_open|P_PIDFD|[gs]etres[ug]id"
    r"|.*xattr|XATTR_.*|fdatasync|waitid|RWF_.*",
    "signal": r"SIGPWR|SIGSTKFLT|SIGPOLL|SIGRTM.*|SIGCLD|sigtimedwait|sigwaitinfo|pidfd_.*",
    "time": r"pthread_getcpuclockid|CLOCK_(BOOTTIME|TAI)",
    "resource": r"prlimit|RLIMIT_(MSGQUEUE|NICE|OFILE|RTPRIO|RTTIME|SIGPENDING)|RUSAGE_THREAD",
    "select": r"epoll|EPOLL.*",
}
_NOT_ON_WINDOWS = {
    "os": _NOT_ON_MACOS["os"] + r"|O_(ASYNC|CLOEXEC|DIRECTORY|DSYNC|NDELAY|NOCTTY|NOFOLLOW|NONBLOCK"
    r"|SYNC)|fork|forkpty|.*pid|.*[ug]id|get(groups|grouplist|loadavg|pgrp|priority)|setp.*|kill"
    r"|killpg|lchown|chown|chroot|confstr.*|ctermid|f(ch|pathconf|statvfs).*|initgroups|lockf|login"
    r"|major|minor|makedev|mk(fifo|nod)|nice|openpty|pathconf.*|posix_spawn.*|POSIX_.*|p(read|write)"
    r".*|readv|writev|register_at_fork|sched_.*|SCHED_.*|sendfile|[gs]et_blocking|statvfs|sync"
    r"|sysconf.*|tc[gs]etpgrp|ttyname|uname|wait|wait3|wait4|WNOHANG|WCONTINUED|WUNTRACED"
    r"|W(IF|EXIT|STOP|TERM|CORE).*|PRIO_.*|RTLD_.*|ST_.*|F_U?LOCK|F_T.*|fchdir",
    "signal": r"(?!SIG_DFL|SIG_IGN|SIG(ABRT|FPE|ILL|INT|SEGV|TERM)$|signal$|Signals$|Handlers$|NSIG"
    r"|getsignal|raise_signal|set_wakeup_fd|default_int_handler|strsignal|valid_signals|_).*",
    "time": r"pthread_getcpuclockid|clock_(get|set).*|CLOCK_.*|tzset",
    "select": r"epoll|EPOLL.*|poll|POLL.*",
}
_KEPT = {"getpid", "getppid", "waitpid"}  # names above that Windows has
_MISSING_MODULES = {
    "fcntl",
    "resource",
    "termios",
    "tty",
    "pty",
    "pwd",
    "grp",
    "readline",
    "curses",
}
_HIDDEN = ("/proc", "/sys")
_OURS = "dpo_cli"
_open, _stat, _listdir, _readlink = (
    open,
    os.stat,
    os.listdir,
    os.readlink,
)  # the stub hides nothing of these


class Proxy(types.ModuleType):
    """Module without some of its names, and with others replaced."""

    def __init__(self, real: Any, missing: str, replaced: Mapping[str, Any]) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(_real=real, _missing=re.compile(missing), _replaced=replaced)

    def __getattr__(self, name: str) -> Any:
        if name in self._replaced:
            return self._replaced[name]
        if self._missing.fullmatch(name) and name not in _KEPT:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} ({PLATFORM})")
        return getattr(self._real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, value)


class _WindowsSignals(enum.IntEnum):
    SIGINT = 2
    SIGILL = 4
    SIGFPE = 8
    SIGSEGV = 11
    SIGTERM = 15
    SIGBREAK = 21
    SIGABRT = 22


def _is_ours() -> bool:
    """Return True if a module of `dpo_cli` made the call, also through the standard library."""
    frame = sys._getframe(2)
    while frame is not None:
        root = _root(frame.f_globals)
        if root == _OURS:
            return True
        if root not in sys.stdlib_module_names and root != __name__:
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _root(module: Mapping[str, Any]) -> str:
    # `python -m` calls a module "__main__" and keeps the name of its package.
    name: str = module.get("__package__") or module.get("__name__") or ""
    return name.partition(".")[0]


def _hide_files() -> None:
    """Make calls of `dpo_cli` find no file below /proc and /sys."""

    def hiding(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if not isinstance(path, int) and os.fspath(path) and _is_hidden(path) and _is_ours():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
            return function(path, *arguments, **options)

        return call

    def with_encoding(function: Callable[..., Any]) -> Callable[..., Any]:
        """Refuse text without an encoding, of which `open` warns only its direct caller."""

        @functools.wraps(function)
        def call(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            *arguments: Any,
            **options: Any,
        ) -> Any:
            is_text = encoding is None and "b" not in mode
            if is_text and PLATFORM == "win32" and _root(sys._getframe(1).f_globals) == _OURS:
                raise EncodingWarning("'encoding' argument not specified")
            return function(file, mode, buffering, encoding, *arguments, **options)

        return call

    for module, names in (
        (os, ("open", "stat", "lstat", "listdir", "scandir", "readlink", "access")),
        (io, ("open",)),
        (builtins, ("open",)),
    ):
        for name in names:
            setattr(module, name, hiding(getattr(module, name)))
    builtins.open = with_encoding(builtins.open)


def _is_hidden(path: Any) -> bool:
    text = os.fsdecode(path)
    return any(text == folder or text.startswith(f"{folder}/") for folder in _HIDDEN)


def _hold_windows_rules() -> None:
    """Refuse operations that Windows refuses: opening directories, and replacing open files."""
    opened, flushed = os.open, os.fsync

    def open_file(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if _is_ours() and os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return opened(path, flags, *arguments, **options)

    def fsync(descriptor: int) -> None:
        import fcntl

        if _is_ours() and not fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flushed(descriptor)

    def guarded(function: Callable[..., Any], *, replaces: bool) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*paths: Any, **options: Any) -> Any:
            if _is_ours() and options.get("dir_fd") is None:
                for path in map(os.path.realpath, paths):
                    if any(f"{each}/".startswith(f"{path}/") for each in _open_files()):
                        raise PermissionError(errno.EACCES, "used by another process", path)
                if len(paths) == 2 and not replaces and os.path.exists(paths[1]):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(paths[1]))
            return function(*paths, **options)

        return call

    os.open, os.fsync = open_file, fsync
    os.replace, os.unlink, os.remove = (
        guarded(function, replaces=True) for function in (os.replace, os.unlink, os.remove)
    )
    os.rename = guarded(os.rename, replaces=False)


def _open_files() -> set[str]:
    """Return the files that this process has open or mapped."""
    found = set()
    for name in _listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(_readlink(f"/proc/self/fd/{name}"))
    with _open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        found.update(line.split(maxsplit=5)[-1].strip() for line in maps if "/" in line)
    return found


def _proxies() -> dict[str, types.ModuleType]:
    missing = _NOT_ON_WINDOWS if PLATFORM == "win32" else _NOT_ON_MACOS
    found = {
        "sys": Proxy(sys, r"getandroidapilevel", {"platform": PLATFORM}),
        "psutil": _psutil(),
    }
    replaced: dict[str, dict[str, Any]] = {"os": {"name": "nt"}, "signal": {}}
    if PLATFORM == "win32":
        replaced["signal"] = {"Signals": _WindowsSignals, "signal": _windows_signal}
        found["ctypes"] = Proxy(ctypes, "", {"CDLL": _cdll_of_windows})
    else:
        import fcntl
        import resource

        replaced["os"] = {}
        found["ctypes"] = Proxy(ctypes, "", {"CDLL": _cdll_of_macos})
        found["fcntl"] = Proxy(fcntl, "", {"F_FULLFSYNC": 51, "fcntl": _fcntl_of_macos})
        found["resource"] = Proxy(
            resource,
            missing["resource"],
            {"setrlimit": _setrlimit_of_macos, "getrusage": _getrusage_of_macos},
        )
    import select

    for module in (os, signal, time, select):
        name = module.__name__
        found[name] = Proxy(module, missing[name], replaced.get(name, {}))
    return found


def _windows_signal(number: int, handler: Any) -> Any:
    _WindowsSignals(number)  # ValueError for any other, as on Windows
    return signal.signal(number, handler)


def _cdll_of_windows(name: Any, *arguments: Any, **options: Any) -> Any:
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return ctypes.CDLL(name, *arguments, **options)


def _cdll_of_macos(name: Any, *arguments: Any, **options: Any) -> Any:
    library = ctypes.CDLL(name, *arguments, **options)
    return Proxy(types.SimpleNamespace(__name__="libSystem", library=library), "(?!library).*", {})


def _fcntl_of_macos(descriptor: int, command: int, *arguments: Any) -> Any:
    import fcntl

    if command == 51:  # F_FULLFSYNC
        return os.fsync(descriptor)
    return fcntl.fcntl(descriptor, command, *arguments)


def _setrlimit_of_macos(kind: int, limits: tuple[int, int]) -> None:
    import resource

    if kind == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    resource.setrlimit(kind, limits)


def _getrusage_of_macos(who: int) -> Any:
    import resource

    usage = resource.getrusage(who)
    return types.SimpleNamespace(ru_maxrss=usage.ru_maxrss * 1024)  # bytes there, KiB here


def _psutil() -> types.ModuleType:
    """Return the few functions of psutil that `dpo_cli` uses, from /proc."""

    class Error(Exception):
        """Base class of psutil's errors."""

    class Process:
        def __init__(self, pid: int | None = None) -> None:
            self.pid = os.getpid() if pid is None else pid

        def memory_info(self) -> types.SimpleNamespace:
            try:
                with _open(f"/proc/{self.pid}/status", encoding="utf-8") as status:
                    found = dict(line.split(":", 1) for line in status)
            except OSError as error:
                raise Error from error
            size = {key: int(found.get(key, "0").split()[0]) << 10 for key in ("VmRSS", "VmHWM")}
            peak = {"peak_wset": size["VmHWM"]} if PLATFORM == "win32" else {}
            return types.SimpleNamespace(rss=size["VmRSS"], **peak)

        def create_time(self) -> float:
            return _stat(f"/proc/{self.pid}").st_ctime

    def virtual_memory() -> types.SimpleNamespace:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(f"SC_{each}PHYS_PAGES") for each in ("", "AV"))
        return types.SimpleNamespace(total=total, available=free)

    module = types.ModuleType("psutil")
    module.__dict__.update(Error=Error, Process=Process, virtual_memory=virtual_memory)
    return module


def _install() -> None:
    proxies, real_import = _proxies(), builtins.__import__

    def import_module(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        if globals and not level and _root(globals) == _OURS:
            root = name.partition(".")[0]
            if PLATFORM == "win32" and root in _MISSING_MODULES:
                raise ModuleNotFoundError(f"No module named {root!r}", name=root)
            if root in proxies and (name == root or not fromlist):
                return proxies[root]
        return real_import(name, globals, locals, fromlist, level)

    builtins.__import__ = import_module
    _hide_files()
    warnings.simplefilter("ignore", EncodingWarning)  # of other packages
    if PLATFORM == "win32":
        _hold_windows_rules()
        # A file that is opened without an encoding has another one on Windows.
        warnings.filterwarnings("error", category=EncodingWarning, module=rf"{_OURS}\.")


if PLATFORM:
    _install()
