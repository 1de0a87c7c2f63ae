"""Devices: how many a run's settings ask for, and the same run on another number of them.

batch_size is that of a device. What can change numbers is the global batch, batch_size x devices x num_nodes.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from src.errors import InputError

if TYPE_CHECKING:
    import lightning as L

Settings = Mapping[str, Any]
ALL = ("auto", "-1", -1)


def world_of(trainer: Settings) -> int:
    """Devices of all machines, by a section `trainer`."""
    return _on_a_machine(trainer.get("devices", 1), trainer.get("accelerator", "auto")) * trainer.get("num_nodes", 1)


def _on_a_machine(devices: Any, accelerator: str) -> int:
    """As Lightning counts them: 2, "2", a list [0, 1] or "0,1", or all with auto or -1."""
    if isinstance(devices, str) and devices not in ALL:
        named = [name for name in devices.split(",") if name.strip()]
        return int(devices) if devices.isdecimal() else len(named)
    if devices not in ALL:
        return devices if isinstance(devices, int) else len(devices)
    from torch import cuda

    return max(1, cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1


def batch_size_of(cfg: Settings) -> int:
    """That of a device."""
    return int(cfg["batch_size"] if "corpus" in cfg else cfg["data"]["batch_size"])


def global_batch_of(cfg: Settings) -> int:
    """That of all devices."""
    return batch_size_of(cfg) * world_of(cfg["trainer"])


def on_one_device(cfg: Settings) -> dict[str, Any]:
    """The settings of the run on one device that has the same global batch."""
    same = deepcopy(dict(cfg))
    if "trainer" not in same:
        return same
    if (world := world_of(same["trainer"])) > 1:
        of_batch = same if "corpus" in same else same["data"]
        of_batch["batch_size"] *= world
        same["trainer"].pop("strategy", None)
    same["trainer"].pop("num_nodes", None)  # which earlier versions did not have
    same["trainer"]["devices"] = 1
    return same


def for_use(cfg: DictConfig) -> DictConfig:
    """The config of a finished run, to use what it trained on one device."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    same = on_one_device({str(key): value for key, value in plain.items()})
    if same["data"].get("padding") == "none":
        same["data"]["batch_size"] = 1
    return OmegaConf.create(same, flags={"struct": True})


def move(cfg: DictConfig, on: Settings) -> None:
    """Let a run go on with the devices and num_nodes of `on`."""
    with open_dict(cfg):
        cfg.trainer.update(on)


def settle(cfg: DictConfig, trainer: "L.Trainer", before: Settings | None = None) -> None:
    """Write down how many devices `trainer` found, where all were asked for; where a run goes on that had the settings
    `before`, with such a batch_size that the global batch stays. Raises InputError where none does that."""
    world = trainer.world_size
    if cfg.trainer.get("devices") in ALL:  # of which another machine has others
        move(cfg, {"devices": trainer.num_devices})
    if before is None or (batch := global_batch_of(before)) == batch_size_of(cfg) * world:
        return
    if batch % world or ("data" in cfg and cfg.data.padding == "none"):
        raise InputError(
            f"trainer.devices: the run has batches of {batch}, which {world} devices cannot share alike: resume it on "
            f"{world_of(before['trainer'])}"
        )
    (cfg if "corpus" in cfg else cfg.data).batch_size = batch // world
