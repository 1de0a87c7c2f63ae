"""Lightning's Trainer on several devices: DistributedDataParallel (Li et al. 2020), a process a device."""

from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from src.errors import InputError


def checked(made: L.Trainer, arguments: dict[str, Any], trains_in_stages: bool) -> L.Trainer:
    """`made` of `arguments`, where it has one device; else one like it that trains by DDP as this project does.

    Raises InputError for another strategy.
    """
    asked = arguments.get("strategy")
    if asked not in (None, "auto", "ddp") or not isinstance(made.strategy, SingleDeviceStrategy | DDPStrategy):
        raise InputError(f"trainer.strategy={asked}: several devices train by ddp alone; leave it out")
    if made.world_size == 1:
        return made
    # buffers are constants; gradients lie in what is sent, so that there is one copy of them; what is frozen at first
    # and trained later has none in between
    strategy = DDPStrategy(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=trains_in_stages
    )
    trainer = L.Trainer(**arguments | {"strategy": strategy, "use_distributed_sampler": False})  # loaders deal out
    # SIGTERM's would broadcast in the midst of a step
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer
