"""Sharding: the rows of each training batch, dealt out to the ranks of a run on several devices."""

from torch.utils.data import Dataset

from src.data.batching import Batch, Messages


class Shard(Dataset[Batch]):
    """A rank's share of each batch of `messages`: every world-th row, as wide as the whole batch would be, with the
    labels of the whole batch, by which the loss knows how much of it this share is."""

    def __init__(self, messages: Messages, rank: int, world: int) -> None:
        self.messages, self.rank, self.world = messages, rank, world

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, rows: list[int]) -> Batch:
        own = rows[self.rank :: self.world]
        batch = self.messages.padded(own or rows[:1], self.messages.width_of(rows))
        return batch._replace(counted=len(own), whole=self.messages.label(rows))
