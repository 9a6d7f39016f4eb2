"""Processors that findings were looked for on: other processors run other kernels."""

from __future__ import annotations

import re
from pathlib import Path

PROCESSORS = {
    "Intel Xeon with AMX": ("GenuineIntel", "6", "amx_int8"),
    "AMD Zen 4": ("AuthenticAMD", "25", "avx512f"),  # Zen 3, of the same family, has no AVX-512
    "AMD Zen 5": ("AuthenticAMD", "26", "avx512f"),
}
"""Vendor, family and an instruction set of each, as /proc/cpuinfo has them."""


def processor(information: str | None = None) -> str | None:
    """The name of this processor, or of that of which `information` is the /proc/cpuinfo; None if it is another."""
    if information is None:
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(re.findall(r"(?m)^(vendor_id|cpu family|flags)\s*: (.*)$", information))
    for name, (vendor, family, flag) in PROCESSORS.items():
        same = (fields.get("vendor_id"), fields.get("cpu family")) == (vendor, family)
        if same and flag in fields.get("flags", "").split():
            return name
    return None
