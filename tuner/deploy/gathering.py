"""Images of many requests, computed together."""

import asyncio
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from tuner.deploy.predictor import Vote

Answer = tuple[Tensor, Tensor]
"""The ensemble's probabilities of an image, shape (K,), and those of its members, (M, K)."""


class Gatherer:
    """Has an ensemble look at the images that wait, all at once.

    While a batch is computed, images wait for the next, which takes all of them: nobody waits for
    others to come. ``serve.batch`` of Ray Serve 2.60 closes a batch when its time is over, whether
    or not the one before is done, and so takes a few images at a time just when many wait.
    """

    def __init__(self, vote: Callable[[Tensor], Vote], most: int) -> None:
        self._vote = vote
        self._most = most
        """Images of a batch."""
        self._waiting: deque[tuple[Tensor, asyncio.Future[Answer]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def look(self, image: Tensor) -> Answer:
        """Return what the ensemble says of a prepared image, uint8, shape (C, H, W)."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, future))
        if self._task is None:
            self._task = asyncio.create_task(self._compute())
        return await future

    async def _compute(self) -> None:
        try:
            while self._waiting:
                taken = [
                    self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))
                ]
                # Some may have given up.
                wanted = [(image, future) for image, future in taken if not future.done()]
                if wanted:
                    images, futures = zip(*wanted, strict=True)
                    await self._compute_batch(torch.stack(images), futures)
        finally:
            self._task = None

    async def _compute_batch(
        self, images: Tensor, futures: tuple["asyncio.Future[Answer]", ...]
    ) -> None:
        try:
            vote = await asyncio.to_thread(self._vote, images)
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, probs, members in zip(
            futures, vote.probs, vote.members.unbind(dim=1), strict=True
        ):
            if not future.done():
                future.set_result((probs, members))
