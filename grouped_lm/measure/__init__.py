"""Clocks and allocators: throughput, peak memory, live bytes, and known devices."""
