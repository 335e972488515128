"""Compute the images of many requests together."""

import asyncio
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from tuner.deploy.predictor import Vote

Answer = tuple[Tensor, Tensor]
"""Probabilities of an image: the ensemble's, shape (K,), and its members', shape (M, K)."""


class Gatherer:
    """Predicts all waiting images in one batch.

    While a batch is computed, images wait for the next one, which takes all of them: no image waits
    for others to arrive. ``serve.batch`` of Ray Serve 2.60 closes a batch when its time is over,
    even if the previous one is not done, and so takes few images at a time just when many wait.
    """

    def __init__(self, vote: Callable[[Tensor], Vote], most: int) -> None:
        self._vote = vote
        self._most = most
        """Maximum images per batch."""
        self._waiting: deque[tuple[Tensor, asyncio.Future[Answer]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def look(self, image: Tensor) -> Answer:
        """Predict a prepared image, uint8, shape (C, H, W)."""
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
                # Some requests may have been cancelled.
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
