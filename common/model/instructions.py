"""Which instructions a processor multiplies bfloat16 with: the last bits depend on them, and so
does the speed.
"""

from __future__ import annotations

import os
import platform

import torch

# oneDNN, which torch calls, takes no instructions beyond these
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# as torch names what a processor has, the fastest first
LEVELS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX512_BF16",
    "avx512_f": "AVX512",
    "avx2": "AVX2",
    "sve_bf16": "SVE_BF16",
    "bf16": "BF16",
}


def name_instructions() -> str:
    """Return the level of this machine's processor, such as `AMX`, `AVX512` or `AVX2`, and what the
    environment limits it to.
    """
    has = torch.cpu.get_capabilities()
    level = platform.machine()
    for capability, name in LEVELS.items():
        if has.get(capability):
            level = name
            break
    for variable in LIMITS:
        limit = os.environ.get(variable)
        if limit:
            return f"{level}, {variable}={limit}"
    return level
