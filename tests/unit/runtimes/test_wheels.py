from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stoker.errors import BuildFailed, RuntimeUnsupported
from stoker.hardware.facts import GpuFacts
from stoker.runtimes.pins import pins
from stoker.runtimes.wheels import choose, digest_of, driver_of
from tests.fakes.hardware import machine

CUDA = ("cu132", "cu128")
ROCM = ("rocm-7.2.4", "rocm-6.4.1")
AMD = GpuFacts("Test Radeon", "amd")


def nvidia(driver: str | None) -> GpuFacts:
    return GpuFacts("Test RTX", "nvidia", driver=driver)


@pytest.mark.parametrize(
    ("driver", "variant"),
    [("595.10", "cu132"), ("590.44.01", "cu132"), ("580.65.06", "cu128"), ("525.60.13", "cu128")],
)
def test_the_driver_decides_between_the_toolkits(driver: str, variant: str) -> None:
    """Below 590 the driver still serves cards that CUDA 13 does not."""
    assert choose("cuda", machine(gpus=(AMD, nvidia(driver))), CUDA) == variant


@pytest.mark.parametrize("gpus", [(), (AMD,), (nvidia(None),), (nvidia("470.1"),)])
def test_no_cuda_without_a_driver_that_runs_it(gpus: tuple[GpuFacts, ...]) -> None:
    with pytest.raises(RuntimeUnsupported):
        choose("cuda", machine(gpus=gpus), CUDA)


def test_rocm_needs_its_toolkit_in_a_version_that_is_served() -> None:
    here = machine(gpus=(AMD,))

    assert choose("rocm", here, ROCM, rocm="7.2.0") == "rocm-7.2.4"
    assert choose("rocm", here, ROCM, rocm="6.4.1-83") == "rocm-6.4.1"
    for version in (None, "10.0"):
        with pytest.raises(RuntimeUnsupported) as caught:
            choose("rocm", here, ROCM, rocm=version)
        assert "7.2.4 or 6.4.1" in caught.value.hint
    with pytest.raises(RuntimeUnsupported):
        choose("rocm", machine(), ROCM, rocm="7.2.0")


def test_vulkan_is_for_any_card_and_macos_needs_none() -> None:
    assert choose("vulkan", machine(), ("vulkan",)) == "vulkan"
    with pytest.raises(RuntimeUnsupported):
        choose("vulkan", replace(machine(), system="darwin"), ("vulkan",))
    with pytest.raises(RuntimeUnsupported):
        choose("quantum", machine(), ())


def test_a_driver_s_version_in_odd_spelling_is_unknown() -> None:
    assert driver_of((nvidia("unknown"), nvidia("535"))) == 535
    assert driver_of((nvidia("x"),)) is None


def report(**changes: Any) -> dict[str, Any]:
    wheels = pins().wheels
    item = {
        "metadata": {"name": wheels.package, "version": wheels.version},
        "download_info": {"archive_info": {"hashes": {"sha256": "ab" * 32}}},
    }
    return {"install": [{**item, **changes}]}


def test_the_digest_is_the_report_s() -> None:
    assert digest_of(report(), pins().wheels) == "ab" * 32


@pytest.mark.parametrize(
    "wrong",
    [
        report(metadata={"name": "xllamacpp", "version": "1.0"}),
        report(metadata={"name": "other", "version": pins().wheels.version}),
        report(download_info={"archive_info": {"hashes": {}}}),
        report(download_info={"archive_info": {"hashes": {"sha256": "short"}}}),
        report(download_info=None),
        {"install": []},
        {"install": [*report()["install"], *report()["install"]]},
        [],
        None,
    ],
)
def test_a_report_of_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(BuildFailed):
        digest_of(wrong, pins().wheels)
