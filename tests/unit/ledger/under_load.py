"""Charges as fast as the disk takes them, until it is killed: `python -m
tests.unit.ledger.under_load DIR ROUND`. Each charge is printed once it is on disk."""

import asyncio
import os
import random
import sys
from pathlib import Path

from tests.unit.ledger.books import Books, a_checkpoint, an_outcome

CREDITS = 1_000_000
_WORKERS = 20


async def main(data_dir: Path, round_: int) -> None:
    books = await Books(data_dir, first_request=round_ * 100_000).open()
    if round_ == 0:
        await books.account(CREDITS)
    chance = random.Random(round_)

    async def work() -> None:
        while True:
            hold = await books.hold("acc_1", 20)
            if chance.random() < 0.2:
                checkpoint = a_checkpoint(hold, chance.randrange(20), books.clock.now())
                await books.ledger.checkpoint([checkpoint])
            settlement = await books.ledger.settle(hold, an_outcome(chance.randrange(30)))
            os.write(1, f"{hold.request_id} {settlement.charged}\n".encode())

    await asyncio.gather(*(work() for _ in range(_WORKERS)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
