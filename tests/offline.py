"""Runs code in a process that the kernel keeps from the network: a seccomp filter, for good.

The filter sees the numbers of a system call and its arguments, not what pointers point to. So it
refuses to make a socket of the internet at all; or, for a server, any but TCP over IPv4, and then
to connect it to anything and to send to an address: what is left is to listen, which a test sees
in /proc/net/tcp.
"""

import ctypes
import errno
import platform
import struct
import subprocess
import sys
from functools import cache

import pytest

from tests.child import child_environment, run_code

# Of linux/audit.h and the tables of system calls.
_MACHINES = {
    "x86_64": (0xC000003E, {"socket": 41, "connect": 42, "sendto": 44, "sendmmsg": 307}),
    "aarch64": (0xC00000B7, {"socket": 198, "connect": 203, "sendto": 206, "sendmmsg": 269}),
}
_INTERNET, _INTERNET_6, _STREAM, _KIND = 2, 10, 1, 0xF  # AF_INET, AF_INET6, SOCK_STREAM, its bits
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # of prctl

_CHILD = """
import sys
from tests.offline import shut
shut(server=sys.argv.pop(1) == "server")
from gemcut.cli import main
main()
"""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


@cache
def why_not():
    """Why it cannot be done here, or None."""
    if not sys.platform.startswith("linux") or platform.machine() not in _MACHINES:
        return "seccomp filters are Linux's; their numbers are known for x86_64 and aarch64"
    tried = run_code("from tests.offline import shut; shut(server=False)")
    return f"no seccomp filter can be set here: {tried.stderr[-200:]}" if tried.returncode else None


def gemcut(*arguments, server=False, **options):
    """A process of the command line that cannot reach the network."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    words = ["server" if server else "client", *map(str, arguments)]
    environment = child_environment() | options.pop("environment", {})
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, *words], env=environment, text=True, **options
    )


def shut(server):
    """Take the network from this process and its children, for good.

    Raises:
        OSError: the kernel does not let us.
    """
    library = ctypes.CDLL(None, use_errno=True)
    code = b"".join(_filter(server))
    program = _Program(len(code) // 8, code)
    calls = ((_NO_NEW_PRIVILEGES, 1, 0), (_SECCOMP, _FILTER, ctypes.byref(program)))
    for number, first, second in calls:
        if library.prctl(number, first, second, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def _filter(server):
    """The instructions: those of a rule refuse the call or go on behind it."""
    machine, calls = _MACHINES[platform.machine()]
    code = [_step(_LOAD, _MACHINE), _step(_EQUAL, machine, 1, 0), _step(_RETURN, _REFUSE)]
    code += _rule(calls["socket"], (0, None, _INTERNET_6, True))
    if server:
        code += _rule(calls["socket"], (0, None, _INTERNET, True), (1, _KIND, _STREAM, False))
        code += _rule(calls["connect"])
        code += _rule(calls["sendto"], (4, None, 0, False))
        code += _rule(calls["sendmmsg"])
    else:
        code += _rule(calls["socket"], (0, None, _INTERNET, True))
    return [*code, _step(_RETURN, _ALLOW)]


def _rule(call, *conditions):
    """Refuse a call if all conditions on its arguments hold: (index, mask, value, equal or not)."""
    tests = [(_NUMBER, None, call, True)]
    tests += [(_ARGUMENTS + 8 * index, *rest) for index, *rest in conditions]
    code = [_step(_RETURN, _REFUSE)]
    for offset, mask, value, equal in reversed(tests):
        ahead = (0, len(code)) if equal else (len(code), 0)
        masked = [] if mask is None else [_step(_AND, mask)]
        code = [_step(_LOAD, offset), *masked, _step(_EQUAL, value, *ahead), *code]
    return code


def _step(code, value, if_true=0, if_false=0):
    """One instruction: struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
