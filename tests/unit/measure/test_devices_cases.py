"""Devices of `gvc plan`: common cards by the names that people write, and figures of one's own."""

import pytest

from grouped_lm.errors import ConfigError
from grouped_lm.measure.devices import DEVICES, EXAMPLE, find_device

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("t4", "t4"),
        ("Tesla T4", "t4"),
        ("L4", "l4"),
        ("A10", "a10"),
        ("v100", "v100"),
        ("rtx3060", "rtx3060"),
        ("RTX 3060", "rtx3060"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx4070tisuper"),
        ("2080-ti", "rtx2080ti"),
        ("RTX_5090", "rtx5090"),
        ("Apple M2 Pro", "m2pro"),
        ("m4max", "m4max"),
    ],
)
def test_case_U8_common_cards_are_known(name, known):
    assert find_device(name, "float32") == DEVICES[known]


def test_case_U8_every_card_has_figures_that_fit_together():
    for name, device in DEVICES.items():
        assert device.name == name
        assert device.source
        assert 1e12 <= device.fp32_flops_per_sec <= device.bf16_flops_per_sec <= device.fp16_flops_per_sec < 2e15
        assert 5e10 < device.bytes_per_sec < 1e13
        assert 6 * GIB <= device.memory_bytes < 200 * GIB
    assert DEVICES["t4"].flops_per_sec("float16") == 65e12
    assert DEVICES["t4"].flops_per_sec("bfloat16") == DEVICES["t4"].flops_per_sec("float32")
    assert DEVICES["rtx3060"].memory_bytes == 12 * GIB
    series = [name for name in DEVICES if name.startswith("rtx")]
    assert {name[3:5] for name in series} == {"20", "30", "40", "50"}


def test_case_U8_own_figures():
    device = find_device("tflops=40, gbps=500, gib=1.5", "bfloat16")
    assert device.flops_per_sec("bfloat16") == device.flops_per_sec("float32") == 40e12
    assert (device.bytes_per_sec, device.memory_bytes) == (5e11, 3 * GIB // 2)


@pytest.mark.parametrize("given", ["tflops=40", "tflops=40,gbps=5", "tflops=x,gbps=1,gib=1", "tflops=0,gbps=1,gib=1"])
def test_case_U8_own_figures_that_lack_one(given):
    with pytest.raises(ConfigError, match=f"--device needs tflops=, gbps= and gib=, each above 0, such as {EXAMPLE}"):
        find_device(given, "float32")


@pytest.mark.parametrize(("name", "near"), [("rtx3065", "rtx3060"), ("RTX 4080 Tx", "rtx4080"), ("a101", "a10")])
def test_case_U8_a_near_name_is_suggested(name, near):
    with pytest.raises(ConfigError) as raised:
        find_device(name, "float32")
    assert f"--device {name} is not known; did you mean {near}" in str(raised.value)
    assert EXAMPLE in str(raised.value)
