"""How codecs are judged and trained, with codecs whose answers are known."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from defiance.codecs.codec import NOISELESS_DB, Codec, Samples, Training, decisions, evaluate, train
from defiance.errors import DefianceError
from defiance.learn.training import Parameters
from defiance.radio.channels import BinarySymmetric
from defiance.seeding import stream

STEPS, CLASSES = 4, 2


@dataclass(frozen=True)
class Oracle:
    """Sends the class, which the frames show, as one bit per step; the edge counts votes."""

    name: str = "oracle"
    steps: int = STEPS
    channel_uses: int = STEPS

    def encode(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        return frames[:, :, 0, 0, :1].float()

    def decode(self, received: Tensor) -> Tensor:
        votes = (2 * received[..., 0] - 1).cumsum(1)
        return torch.stack([-votes, votes], -1)


def samples(count: int) -> Samples:
    labels = torch.randint(0, CLASSES, (count,), generator=stream(1, "labels").generator())
    frames = torch.zeros(count, STEPS, 2, 1, 1, dtype=torch.uint8) + labels[:, None, None, None, None]
    return Samples(frames.to(torch.uint8), labels)


def generator() -> torch.Generator:
    return stream(2, "channel").generator()


def test_without_noise_an_oracle_is_always_right() -> None:
    codec: Codec = Oracle()
    given = samples(300)
    named = decisions(codec, BinarySymmetric(), given.frames, NOISELESS_DB, generator(), batch=70)
    assert torch.equal(named, given.labels[:, None].expand(-1, STEPS))


def test_the_first_decision_of_an_oracle_errs_as_the_channel_does() -> None:
    given, count = samples(4000), 4000
    accuracy = evaluate(Oracle(), BinarySymmetric(), given.frames, given.labels, -3.0, generator())
    crossover = float(BinarySymmetric().crossover(-3.0))
    spread = math.sqrt(crossover * (1 - crossover) / count)
    assert accuracy.shape == (STEPS,)
    assert abs(float(accuracy[0]) - (1 - crossover)) < 4 * spread
    assert float(accuracy[2]) > float(accuracy[0]) + 4 * spread


def test_the_code_rate_is_in_the_energy() -> None:
    given = samples(2000)
    low = evaluate(Oracle(), BinarySymmetric(), given.frames, given.labels, 0.0, generator(), rate=0.25)
    same = evaluate(
        Oracle(), BinarySymmetric(), given.frames, given.labels, 10 * math.log10(0.25), generator()
    )
    assert torch.equal(low, same)


@pytest.mark.parametrize(
    ("frames", "labels", "message"),
    [
        (torch.zeros(3, 4, 2, 5, 5), torch.zeros(3, dtype=torch.int64), "frames must be uint8"),
        (torch.zeros(3, 4, 1, 5, 5, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "frames must be"),
        (torch.zeros(3, 4, 2, 5, 5, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "labels must be"),
        (torch.zeros(3, 4, 2, 5, 5, dtype=torch.uint8), torch.zeros(3), "labels must be int64"),
    ],
)
def test_samples_that_do_not_fit_are_refused(frames: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DefianceError, match=message):
        Samples(frames, labels)


def test_samples_are_selected_and_joined() -> None:
    given = samples(10)
    joined = Samples.concatenate([given.select(torch.arange(4)), given.select(given.labels == 1)])
    assert len(joined) == 4 + int(given.labels.sum())
    assert torch.equal(joined.frames[:4], given.frames[:4])


def linear(
    parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
) -> Tensor:
    logits = frames.flatten(1).float() @ parameters["weight"]
    return functional.cross_entropy(logits, labels) + 0 * parameters["other"].sum()


START = {"weight": torch.zeros(2 * STEPS, CLASSES), "other": torch.ones(1)}
SETTINGS = Training(epochs=3, batch=20, learning_rate=0.1, ebn0_low_db=-4.0, ebn0_high_db=2.0)


def test_training_learns_keeps_the_best_epoch_and_leaves_the_start_alone() -> None:
    given = samples(200)
    found = train(START, linear, given.select(torch.arange(150)), given, SETTINGS, stream(1, "t"))
    assert found.rounds == 3
    assert found.validation_loss.shape == (4,)
    assert float(found.validation_loss[0]) == pytest.approx(math.log(2))
    assert float(found.validation_loss.min()) < 0.36  # frames of class 0 are empty: at best log(2)/2
    assert found.parameters["weight"].shape == START["weight"].shape
    assert not START["weight"].any()


def test_training_depends_on_its_stream_alone() -> None:
    given = samples(100)
    first, second, third = (
        train(START, linear, given, given, SETTINGS, stream(seed, "t")).parameters["weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_an_epoch_shows_every_recording_once_at_an_ebn0_of_its_own() -> None:
    shown: list[Tensor] = []
    drawn: list[Tensor] = []
    given = Samples(
        torch.arange(60, dtype=torch.uint8)[:, None, None, None, None].expand(60, STEPS, 2, 1, 1).clone(),
        torch.zeros(60, dtype=torch.int64),
    )

    def record(
        parameters: Parameters, frames: Tensor, labels: Tensor, ebn0_db: Tensor, generator: torch.Generator
    ) -> Tensor:
        if torch.is_grad_enabled():
            shown.append(frames[:, 0, 0, 0, 0])
            drawn.append(ebn0_db)
        return parameters["weight"].sum() * 0

    train(START, record, given, given, Training(epochs=2, batch=20), stream(1, "t"))
    for epoch in (shown[:3], shown[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(60))
    assert shown[0].tolist() != shown[3].tolist()
    ebn0_db = torch.cat(drawn)
    assert ebn0_db.shape == (120, 1)
    assert -6 <= float(ebn0_db.min()) < -5 and 5 < float(ebn0_db.max()) <= 6


def test_augmentation_touches_training_recordings_only() -> None:
    given = samples(100)

    def blacken(frames: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(frames)

    found = train(START, linear, given, given, SETTINGS, stream(1, "t"), augment=blacken)
    torch.testing.assert_close(found.validation_loss, torch.full((4,), math.log(2)))


def test_what_may_not_move_stays() -> None:
    given = samples(100)
    found = train(
        START, linear, given, given, SETTINGS, stream(1, "t"), trainable=lambda name: name == "other"
    )
    assert not found.parameters["weight"].any()


def test_too_few_recordings_for_a_batch_are_refused() -> None:
    with pytest.raises(DefianceError, match="19 training recordings do not fill one batch of 20"):
        train(START, linear, samples(19), samples(19), SETTINGS, stream(1, "t"))
