"""What lies between devices: published peak figures, one direction, for each device.

`source` names the figure as its maker publishes it. They were read on pages that repeat the makers' sheets. Latency is
left out: it matters for small models alone.
"""

import difflib
from dataclasses import dataclass

from grouped_lm.errors import ConfigError
from grouped_lm.measure.devices import parse_bytes


@dataclass(frozen=True)
class Interconnect:
    """The slowest link of the ring that all devices form, of each device its own."""

    name: str
    bytes_per_sec: float
    """One direction."""
    source: str
    reduce_scatter_passes: int = 1
    """How often reducing and scattering sends (W - 1)/W of a buffer."""


INTERCONNECTS = {
    link.name: link
    for link in (
        Interconnect("nvlink4", 450e9, "NVIDIA H100 data sheet, SXM5: NVLink 900 GB/s in both directions together"),
        Interconnect("nvlink3", 300e9, "NVIDIA A100 data sheet: NVLink 600 GB/s in both directions together"),
        Interconnect("pcie5", 64e9, "PCI Express 5.0, 16 lanes of 32 GT/s"),
        Interconnect("pcie4", 32e9, "PCI Express 4.0, 16 lanes of 16 GT/s"),
        Interconnect("ib-ndr", 50e9, "InfiniBand NDR, 400 Gb/s, an adapter for each device"),
        Interconnect("ib-hdr", 25e9, "InfiniBand HDR, 200 Gb/s, an adapter for each device"),
        Interconnect("ethernet-100g", 12.5e9, "100 Gb/s Ethernet, an adapter for each device"),
        Interconnect("ethernet-10g", 1.25e9, "10 Gb/s Ethernet, an adapter for each device"),
    )
}


def find_interconnect(name: str, on_cpu: bool = False) -> Interconnect:
    """Return the interconnect of that name, or one of so many bytes per second: 25GB, 800MB.

    Args:
        name: as the user gave it.
        on_cpu: devices are CPUs, whose gloo reduces and scatters by an all-reduce.

    Raises:
        ConfigError: neither.
    """
    passes = 2 if on_cpu else 1
    if name in INTERCONNECTS:
        known = INTERCONNECTS[name]
        return Interconnect(known.name, known.bytes_per_sec, known.source, passes)
    try:
        return Interconnect(name, parse_bytes(name), "as given", passes)
    except ConfigError as error:
        near = difflib.get_close_matches(name.lower(), INTERCONNECTS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--interconnect must be one of {', '.join(INTERCONNECTS)}, or bytes per second for each device such as "
            f"25GB, got {name!r}{hint}"
        ) from error
