"""What ggml can compute on: backends, devices, their memory, and devices of other machines."""

import ctypes
import socket
from ipaddress import AddressValueError, IPv4Address

import numpy as np

from gemcut.engine import Device
from gemcut.errors import EngineError
from gemcut.llama.library import check_single_copies, function, require

_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")  # enum ggml_backend_dev_type


def backends() -> list[str]:
    """The names of the backends that llama.cpp was built with, as "CPU", "CUDA", "RPC"."""
    require()
    registries = map(function("ggml_backend_reg_get"), range(function("ggml_backend_reg_count")()))
    return [function("ggml_backend_reg_name")(registry).decode() for registry in registries]


def devices() -> list[Device]:
    """Every device llama.cpp can use now, with the memory that is free at this moment."""
    require()
    count = function("ggml_backend_dev_count")()
    return [_describe(function("ggml_backend_dev_get")(index)) for index in range(count)]


def _describe(device: int) -> Device:
    memory = np.zeros(2, dtype=np.uintp)
    free, total = memory[:1], memory[1:]
    function("ggml_backend_dev_memory")(device, free.ctypes.data, total.ctypes.data)
    return Device(
        function("ggml_backend_dev_name")(device).decode(),
        function("ggml_backend_dev_description")(device).decode(errors="replace"),
        _KINDS[function("ggml_backend_dev_type")(device)],
        int(free[0]),
        int(total[0]),
    )


def device_handle(name: str) -> int:
    """ggml's handle of a device. Raises EngineError for a name it does not have."""
    require()
    found: int | None = function("ggml_backend_dev_by_name")(name.encode(errors="replace"))
    if found is None:
        known = ", ".join(device.name for device in devices())
        raise EngineError(f"there is no device {name!r}; llama.cpp has {known}")
    return found


def buffer_type(name: str) -> int:
    """ggml's handle of the memory of a device. Raises EngineError for an unknown name."""
    if name == "CPU":  # a CPU device's own type may be pinned or repacked memory
        return int(function("ggml_backend_cpu_buffer_type")())
    return int(function("ggml_backend_dev_buffer_type")(device_handle(name)))


def buffer_name(device: str) -> str:
    """What llama.cpp's log calls a device's memory: most often as the device, but the first device
    of each RPC server is "RPC0[host:port]". Raises EngineError for an unknown device."""
    return str(function("ggml_backend_buft_name")(buffer_type(device)).decode())


def add_rpc(endpoint: str) -> list[str]:
    """Add the devices of the RPC server at "host:port"; their names. Adding twice does nothing.

    From then on llama.cpp uses them like GPUs; it ends the process if the server goes away.

    Raises:
        EngineError: nobody listens there, or this llama.cpp was built without RPC.
    """
    require()
    add = function("ggml_backend_rpc_add_server")
    _split(endpoint)
    if not function("ggml_backend_reg_by_name")(f"RPC[{endpoint}]".encode()):
        _check_listening(endpoint)
    registry = add(endpoint.encode())
    if not registry:
        raise EngineError(f"{endpoint}: the RPC server offers no device")
    if not function("ggml_backend_reg_by_name")(f"RPC[{endpoint}]".encode()):
        function("ggml_backend_register")(registry)
    check_single_copies()
    handles = range(function("ggml_backend_reg_dev_count")(registry))
    devices_of = [function("ggml_backend_reg_dev_get")(registry, index) for index in handles]
    return [function("ggml_backend_dev_name")(device).decode() for device in devices_of]


def serve_rpc(endpoint: str, threads: int, names: tuple[str, ...] = ("CPU",)) -> None:
    """Offer devices of this machine to llama.cpp on others at "host:port". Does not return.

    The protocol has no authentication: serve on a loopback or otherwise trusted network only. One
    client is served at a time; others wait.

    Raises:
        EngineError: an unknown device, a port that cannot be had, or a build without RPC.
    """
    require()
    start = function("ggml_backend_rpc_start_server")
    handles = (ctypes.c_void_p * len(names))(*map(device_handle, names))
    _check_port(endpoint)
    start(endpoint.encode(), None, threads, len(names), handles)
    raise EngineError(f"the RPC server at {endpoint} ended: is the port taken?")


def _check_port(endpoint: str) -> None:
    """ggml says on stderr that there is "no server socket", and not why."""
    host, port = _split(endpoint)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((str(IPv4Address(host)), port))
    except AddressValueError:
        raise EngineError(f"{host}: not an IPv4 address, which ggml wants: 127.0.0.1") from None
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise EngineError(f"{endpoint}: cannot be served ({why}): choose another port") from error


def _check_listening(endpoint: str) -> None:
    """ggml ends the process when it cannot connect."""
    try:
        socket.create_connection(_split(endpoint), timeout=5).close()
    except (OSError, ValueError) as error:  # ValueError: a name that no network can have
        raise EngineError(f"{endpoint}: no RPC server answers there: {error}") from error


def _split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 1 << 16
    if not host or not host.isprintable() or number >= 1 << 16:
        raise EngineError(
            f"{endpoint!r:.80} is not an endpoint: write host:port, as 127.0.0.1:50052"
        )
    return host, number
