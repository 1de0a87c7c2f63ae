"""python -m benchmarks.machine precision=32-true,bf16-mixed [size=2048]

What a measurement ran on, as JSON: processor, threads, versions, load, and for each precision the peak, the operations
a second of a large matrix product. The peak is the best of what PyTorch offers for one: `a @ a`
(src.pretraining.throughput), a linear layer, and oneDNN's own linear layer, which on some processors is far faster.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from src.config.command_line import one_sentence
from src.config.options import AtLeast1, options
from src.errors import InputError

PRECISIONS = {"32-true", "bf16-mixed", "bf16-true"}
SLOW = 20e9  # operations a second: below, as for bf16 on a processor without it, a large product would take minutes


@dataclass
class Options:
    """What the command line takes."""

    precision: str
    size: AtLeast1 = 2048


def facts(gpu: bool = False) -> dict[str, Any]:
    """Processor or GPU, threads, load, versions and date."""
    import torch

    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "device": torch.cuda.get_device_name() if gpu else cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "lightning", "transformers")},
    }


def cpu_model() -> str:
    """The processor's name, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def peak(precision: str, size: int, gpu: bool = False) -> float:
    """Operations a second of the fastest product of two size x size matrices, each way tried five times."""
    import torch

    dtype = torch.bfloat16 if "bf16" in precision else torch.float32
    if gpu:
        from src.pretraining.throughput import measured_peak

        return measured_peak(torch.device("cuda"), dtype, size)
    small = _fastest(dtype, 256)
    return max(small, _fastest(dtype, size)) if small > SLOW else small


def _fastest(dtype: Any, size: int) -> float:
    import torch
    from torch.utils import mkldnn

    from src.pretraining.throughput import measured_peak

    a, layer = torch.randn(size, size).to(dtype), torch.nn.Linear(size, size, bias=False).eval()
    best = 0.0
    with torch.inference_mode(), suppress(RuntimeError):  # oneDNN refuses bf16 where the processor has none
        onednn, packed = mkldnn.to_mkldnn(layer, dtype), a.to_mkldnn()
        best = _rate(lambda: onednn(packed), size)
    with torch.inference_mode():
        layer = layer.to(dtype)
        best = max(best, _rate(lambda: layer(a), size))
        return max(best, measured_peak(torch.device("cpu"), dtype, size))


def _rate(product: Callable[[], object], size: int) -> float:
    product()
    best = 0.0
    for _ in range(5):
        started = perf_counter()
        for _ in range(3):
            product()
        best = max(best, 3 * 2 * size**3 / (perf_counter() - started))
    return best


def main() -> None:
    """Print facts and peaks."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    if unknown := set(given.precision.split(",")) - PRECISIONS:
        raise InputError(f"precision={unknown.pop()} is unknown: use {', '.join(sorted(PRECISIONS))}")
    peaks = {precision: peak(precision, given.size) for precision in given.precision.split(",")}
    print(json.dumps(facts() | {"peak_flops_per_second": peaks}))


if __name__ == "__main__":
    with one_sentence():
        main()
