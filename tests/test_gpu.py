"""GPUs as the driver tells: what is there, and why there is none."""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from stillhouse.gpu import Gpu, device_error, find_gpus, no_gpu_reason, used_memory


class Driver:
    """Answers as libcuda does, about two GPUs."""

    names = (b"NVIDIA H200", b"NVIDIA A100")

    def __init__(self, count: int = 2, status: int = 0) -> None:
        self.count, self.status = count, status
        self.retained = self.broken = 0

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = 10 + index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:  # noqa: N802
        ctypes.memmove(name, self.names[device.value - 10], len(self.names[device.value - 10]))
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        memory._obj.value = 80 << 30
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        self.retained += 1
        return self.broken

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
        self.retained -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        return 0

    def cuMemGetInfo_v2(self, free: Any, whole: Any) -> int:  # noqa: N802
        free._obj.value, whole._obj.value = 50 << 30, 80 << 30
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:  # noqa: N802
        number._obj.value = {75: 9 - (device.value - 10), 76: 0}[attribute]
        return 0


@pytest.fixture(autouse=True)
def unremembered() -> Iterator[None]:
    """What is found is found once for a process."""
    find_gpus.cache_clear()
    yield
    find_gpus.cache_clear()


def found(driver: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Gpu, ...]:
    def load(name: str) -> Any:
        if driver is None:
            raise OSError(f"{name}: no such file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    return find_gpus()


def test_every_gpu_of_the_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(Driver(), monkeypatch) == (
        Gpu("NVIDIA H200", 80 << 30, "9.0"),
        Gpu("NVIDIA A100", 80 << 30, "8.0"),
    )
    assert no_gpu_reason() is None


def test_what_is_in_use_is_asked_of_the_driver_whoever_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    assert found(driver, monkeypatch)
    assert used_memory() == used_memory(1) == 30 << 30 and driver.retained == 0
    assert used_memory(2) is None
    driver.broken = 2  # no memory is left for a context
    assert used_memory() is None
    find_gpus.cache_clear()
    assert found(None, monkeypatch) == () and used_memory() is None


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (None, "no driver of NVIDIA's is installed"),
        (Driver(count=0), "the driver finds no GPU"),
        (Driver(status=100), "the driver finds no GPU"),
    ],
)
def test_where_there_is_none_it_is_said_why(driver: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(driver, monkeypatch) == () and no_gpu_reason() == reason
    assert device_error("cuda", ()) == f"there is no GPU cuda: {reason}"


def test_an_index_that_does_not_exist_is_told_with_those_that_do() -> None:
    one = Gpu("NVIDIA H200", 80 << 30, "9.0")
    assert device_error("cuda", [one]) is None and device_error("cuda:0", [one]) is None
    assert device_error("cuda:3", [one]) == "there is no GPU cuda:3 among cuda:0 (NVIDIA H200)"
