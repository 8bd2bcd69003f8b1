"""The paged KV cache: a counter of free blocks that cannot lie."""


class BlockPool:
    """A pool of equal KV blocks.

    Which block a token lands in has no effect on time or capacity, so only numbers are kept.
    """

    def __init__(self, total: int, block_size: int) -> None:
        if total < 1 or block_size < 1:
            msg = f"a KV pool needs blocks: got {total} blocks of {block_size} tokens"
            raise ValueError(msg)
        self.total = total
        self.block_size = block_size
        self.free = total

    @property
    def tokens(self) -> int:
        """Capacity in tokens."""
        return self.total * self.block_size

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return 1.0 - self.free / self.total

    def blocks_for(self, tokens: int) -> int:
        """Return the blocks that a sequence of this many tokens fills."""
        return -(-tokens // self.block_size)

    def take(self, blocks: int) -> None:
        """Take blocks out of the pool.

        Raises:
            ValueError: fewer are free; the caller has to ask first.
        """
        if not 0 <= blocks <= self.free:
            msg = f"{blocks} blocks asked, {self.free} free"
            raise ValueError(msg)
        self.free -= blocks

    def give_back(self, blocks: int) -> None:
        """Return blocks to the pool.

        Raises:
            ValueError: more than were taken.
        """
        if not 0 <= blocks <= self.total - self.free:
            msg = f"{blocks} blocks returned, {self.total - self.free} taken"
            raise ValueError(msg)
        self.free += blocks
