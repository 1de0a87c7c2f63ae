"""Where a run's numbers come from: commit, device, precision, versions."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def commit() -> str | None:
    """The commit that the code runs from, with a + for uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        named = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]  # by no tag: the whole hash
        found = subprocess.run(["git", "-C", str(here), *named], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def environment(device: "torch.device", precision: Any) -> dict[str, str]:
    """Where a run's numbers come from; `precision` is the Trainer's own, which is bf16-mixed for 16-mixed on a CPU."""
    import platform
    from importlib.metadata import version

    import torch

    from src import ranks

    cpu = f"cpu, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {
        "device": f"{ranks.world()} x {name}" if ranks.world() > 1 else name,
        "precision": str(precision),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "python": platform.python_version(),
    }
