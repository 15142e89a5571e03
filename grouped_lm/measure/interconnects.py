"""Peak bandwidth of links between devices, in one direction and per device, as their makers publish it.

`source` names the maker's document. The values were read on pages that repeat these documents. Latency is left out,
because it matters for small models alone.
"""

from dataclasses import dataclass, replace

from grouped_lm.errors import ConfigError
from grouped_lm.measure.devices import did_you_mean, parse_bytes


@dataclass(frozen=True)
class Interconnect:
    """The slowest link of the ring of all devices; each device has a link of its own."""

    name: str
    bytes_per_sec: float
    """One direction."""
    source: str
    reduce_scatter_passes: int = 1
    """A reduce-scatter sends (W - 1)/W of a buffer so many times."""


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
    """Return the interconnect with that name, or with that bandwidth per second, such as 25GB.

    Args:
        name: a name or a size.
        on_cpu: whether the devices are CPUs, where gloo uses an all-reduce for a reduce-scatter.

    Raises:
        ConfigError: it is neither a name nor a size.
    """
    passes = 2 if on_cpu else 1
    if name in INTERCONNECTS:
        return replace(INTERCONNECTS[name], reduce_scatter_passes=passes)
    try:
        return Interconnect(name, parse_bytes(name), "as given", passes)
    except ConfigError as error:
        raise ConfigError(
            f"--interconnect must be one of {', '.join(INTERCONNECTS)}, or bytes per second for each device such as "
            f"25GB, got {name!r}{did_you_mean(name, INTERCONNECTS)}"
        ) from error
