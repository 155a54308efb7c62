"""Placement of what a run trains on: on the device where it fits, else on the host, else on disk."""

import os
from typing import Any

import jax

PLACEMENTS = ("auto", "device", "stream")  # of config.dataset.placement
DEVICE_SHARE = 0.4  # of an accelerator's memory; activations and optimizer state need the rest
HOST_SHARE = 0.25  # of the machine's memory, where the device is the CPU


def choose_placement(size: int, contents: str, placement: str) -> dict[str, Any]:
    """{'placement': 'device' | 'stream', 'bytes': of the split, 'note': a sentence with the count that decided}.

    size: bytes of the split; contents: what it holds, in words; placement: `config.dataset.placement`.
    """
    limit, where = device_room()
    fits = size <= limit
    chosen = ("device" if fits else "stream") if placement == "auto" else placement
    reason = f"{size / 2**20:.1f} MiB, {'within' if fits else 'over'} the {limit / 2**20:,.0f} MiB that {where} lends"
    asked = "" if placement == "auto" else ", as config.dataset.placement says"
    return {"placement": chosen, "bytes": size, "note": f"{contents}: {chosen} ({reason}){asked}"}


def device_room() -> tuple[float, str]:
    """Bytes that the data may take on the device, and whose memory that is."""
    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if memory:
        return memory * DEVICE_SHARE, device.device_kind
    return host_room(), "this machine's memory"


def host_room() -> float:
    """Bytes that the data may take in the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * HOST_SHARE
