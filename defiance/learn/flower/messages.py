"""What travels between server and nodes (extra `flower`): weights as NumPy arrays, read without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord

from defiance.errors import DefianceError
from defiance.learn.training import Parameters, Schedule


def to_record(parameters: Parameters) -> ArrayRecord:
    """Weights as Flower's arrays."""
    return ArrayRecord({name: Array(weight.detach().numpy()) for name, weight in parameters.items()})


def from_record(record: ArrayRecord) -> Parameters:
    """Flower's arrays as weights.

    Raises:
        DefianceError: an array isn't one.
    """
    try:
        return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}
    except (ValueError, TypeError, EOFError, OSError, MemoryError) as error:
        raise DefianceError(f"its weights cannot be read: {error}") from error


@dataclass(frozen=True)
class Ask:
    """What a node is asked for, beside the weights: plain values of a ConfigRecord.

    Attributes:
        run: the training's token, 16 hexadecimal digits.
        round: to train, 1 ... rounds; rounds + 1 asks for a judgement alone.
        counted: the last round in which each node's update counted, by its number; 0 if none.
        rounds, steps_per_round, learning_rate, seed: of the settings.
    """

    run: str
    round: int
    counted: list[int]
    rounds: int
    steps_per_round: int
    learning_rate: float
    seed: int

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Ask:
        """From a message."""
        ask = cls(**record)
        if len(ask.run) != 16 or not set(ask.run) <= set("0123456789abcdef"):
            raise DefianceError(f"the server's name of the run is not one: {ask.run!r}")
        return ask

    @property
    def schedule(self) -> Schedule:
        """How long and how fast."""
        return Schedule(self.rounds, self.steps_per_round, self.learning_rate)
