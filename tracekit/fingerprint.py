"""What a bitwise claim depends on. Two runs may only be expected to agree bit for bit if these agree."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

__all__ = ["environment_fingerprint"]


def environment_fingerprint() -> dict[str, Any]:
    """CPU and its instruction set, threads, torch and its BLAS, NumPy, numba, platform. No paths, no host names."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "blas": _blas(),
        "numpy": np.__version__,
        "numba": _version("numba"),
        "cuda": torch.version.cuda,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:  # noqa: PTH123  # a kernel file, read line by line
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _blas() -> str:
    options = torch.__config__.show().split(",")
    found = next((option.split("=", 1)[1] for option in options if "BLAS_INFO=" in option), "unknown")
    return found.strip()
