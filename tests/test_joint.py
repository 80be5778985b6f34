"""Joint codes: the contract of all codecs, energy, repetition, and that they learn."""

from typing import Any

import pytest
import torch
from codec_contract import CLASSES, SIZE, STEPS, bars, check_codec
from hypothesis import given
from hypothesis import strategies as st

from defiance.codecs.codec import NOISELESS_DB, Codec, Training, evaluate, train
from defiance.codecs.conventional import BlockCodec, Shape, decision_loss, event_map, so_far
from defiance.codecs.joint import (
    Central,
    CentralConfig,
    JointAnn,
    JointAnnConfig,
    Repeated,
    RepeatedChannel,
    UncodedMap,
    UncodedMapConfig,
    average,
    own_part,
    repeat,
    straight_through,
)
from defiance.codecs.neurojscc import NeuroJscc, NeuroJsccConfig, neurojscc_loss
from defiance.codecs.vdib import VdibConfig
from defiance.errors import DefianceError
from defiance.radio.channels import Awgn, BinarySymmetric
from defiance.seeding import stream

DRAWS = stream(7, "joint")
SPIKING = VdibConfig(steps=STEPS, size=SIZE, channels=(4, 8), hidden=32, readouts=4, lags=3, classes=CLASSES)


def shape(uses_per_step: int = 4, blocks: int = 1) -> Shape:
    return Shape(STEPS, uses_per_step, SIZE, CLASSES, slices=3, blocks=blocks)


def joint_ann(symbols: Any, blocks: int = 1, uses_per_step: int = 4) -> JointAnn:
    config = JointAnnConfig(shape(uses_per_step, blocks), symbols, device_hidden=32, edge_hidden=32)
    return JointAnn(config, JointAnn.initial(config, DRAWS.generator()))


def uncoded_map(blocks: int = 3, uses_per_step: int = 25) -> UncodedMap:
    config = UncodedMapConfig(shape(uses_per_step, blocks), cells=5)
    return UncodedMap(config, UncodedMap.initial(config, DRAWS.generator()))


def central(blocks: int = 1) -> Central:
    config = CentralConfig(STEPS, SIZE, 3, blocks, CLASSES, hidden=32)
    return Central(config, Central.initial(config, DRAWS.generator()))


def neurojscc(**changes: Any) -> NeuroJscc:
    config = NeuroJsccConfig(VdibConfig(**{**vars(SPIKING), **changes}), neurons=64)
    return NeuroJscc(config, NeuroJscc.initial(config, DRAWS.generator()))


class TestContract:
    @pytest.mark.parametrize("blocks", [1, 3])
    def test_joint_ann(self, blocks: int) -> None:
        check_codec(joint_ann("binary", blocks), bars(5).frames, blocks=blocks)
        check_codec(joint_ann("analogue", blocks), bars(5).frames, binary=False, blocks=blocks)

    @pytest.mark.parametrize("blocks", [1, 3])
    def test_uncoded_map(self, blocks: int) -> None:
        check_codec(uncoded_map(blocks), bars(5).frames, blocks=blocks)

    def test_repeated(self) -> None:
        check_codec(Repeated(joint_ann("binary", 3), 3), bars(5).frames, blocks=3)
        check_codec(Repeated(neurojscc(), 2), bars(5).frames)

    @pytest.mark.parametrize("firing", ["random", "deterministic"])
    def test_neurojscc(self, firing: str) -> None:
        check_codec(neurojscc(firing=firing), bars(5).frames)

    def test_central_sees_every_event(self) -> None:
        frames = bars(5).frames
        sent = central().encode(frames, DRAWS.generator())
        assert sent.shape == (5, STEPS, 2 * SIZE**2)
        assert float(sent.sum()) == float(frames.sum())
        assert central(3).decode(sent).shape == (5, STEPS, CLASSES)


class TestMaps:
    def test_every_event_of_the_middle_is_counted_once(self) -> None:
        frames = torch.randint(4, (3, STEPS, 2, SIZE + 4, SIZE + 2), generator=DRAWS.generator()).byte()
        counts = event_map(frames, SIZE, 3, 6)
        assert counts.shape == (3, 3, 2, 6, 6)
        middle = frames[..., 2 : SIZE + 2, 1 : SIZE + 1].long()
        torch.testing.assert_close(
            counts.sum((3, 4)), middle.view(3, 3, 2, 2, SIZE, SIZE).sum((2, 4, 5)).float()
        )
        torch.testing.assert_close(
            counts[1, 2, 0, 5, 3], middle[1, 4:, 0, 10:12, 6:8].sum().float(), rtol=1e-6, atol=0
        )

    def test_small_frames_are_refused(self) -> None:
        with pytest.raises(DefianceError, match="smaller than size = 28"):
            event_map(torch.zeros(1, 3, 2, 27, 40, dtype=torch.uint8), 28, 3, 14)

    def test_so_far_hides_the_future(self) -> None:
        seen = so_far(torch.ones(2, 6, 5), 3)
        assert seen.sum((0, 2, 3)).tolist() == [20, 40, 60]

    def test_own_part(self) -> None:
        outputs = torch.arange(12).view(1, 3, 4).repeat(2, 1, 3)  # 3 blocks, 12 uses
        parts = own_part(outputs)
        assert parts.shape == (2, 3, 4)
        assert torch.equal(parts[0], torch.arange(12).view(3, 4))

    @pytest.mark.parametrize("changes", [{"slices": 4}, {"blocks": 2}, {"uses_per_step": 0}])
    def test_impossible_shapes_are_refused(self, changes: dict[str, int]) -> None:
        with pytest.raises(DefianceError, match="codec shape"):
            Shape(**{"steps": 15, "slices": 3, **changes})

    def test_a_map_larger_than_its_block_is_refused(self) -> None:
        with pytest.raises(DefianceError, match="50 bits do not fit in the 48 uses"):
            uncoded_map(uses_per_step=24)


class TestRepetition:
    @given(symbols=st.integers(1, 9), uses=st.integers(9, 40))
    def test_average_undoes_repeat(self, symbols: int, uses: int) -> None:
        sent = torch.arange(float(symbols)).expand(2, symbols)
        torch.testing.assert_close(average(repeat(sent, uses), symbols), sent)

    def test_a_repeated_code_is_its_inner_code_on_a_better_channel(self) -> None:
        inner, channel = joint_ann("binary"), BinarySymmetric()
        frames, outer = bars(20).frames, Repeated(inner, 3)
        sent = outer.encode(frames, DRAWS.generator())
        received = channel(sent, -2.0, DRAWS.generator())
        better = RepeatedChannel(channel, 3)(inner.encode(frames, DRAWS.generator()), -2.0, DRAWS.generator())
        torch.testing.assert_close(outer.decode(received), inner.decode(better))

    def test_three_repeats_of_a_bit_err_as_a_majority_does(self) -> None:
        channel, bits = BinarySymmetric(), torch.zeros(400, 100)
        crossover = float(channel.crossover(-2.0))
        wrong = RepeatedChannel(channel, 3)(bits, -2.0, DRAWS.generator()) > 0.5
        expected = 3 * crossover**2 - 2 * crossover**3
        assert float(wrong.double().mean()) == pytest.approx(expected, rel=0.05)


class TestSymbols:
    def test_straight_through(self) -> None:
        potential = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
        bits = straight_through(potential)
        assert bits.tolist() == [0, 0, 1]
        bits.sum().backward()  # type: ignore[no-untyped-call]
        probability = potential.detach().sigmoid()
        torch.testing.assert_close(potential.grad, probability * (1 - probability))

    def test_a_dark_recording_has_finite_symbols(self) -> None:
        for codec in (joint_ann("binary"), joint_ann("analogue", 3)):
            sent = codec.encode(torch.zeros(2, STEPS, 2, SIZE, SIZE, dtype=torch.uint8), DRAWS.generator())
            assert bool(sent.isfinite().all())


def learned(codec: BlockCodec, channel: Any) -> tuple[float, float]:
    """Train on bars and return the accuracy without noise and at 0 dB, on others."""
    kind, config = type(codec), codec.config  # type: ignore[attr-defined]

    def build(parameters: Any) -> Any:
        return kind(config, parameters)

    fit = train(
        dict(codec.parameters),  # type: ignore[attr-defined]
        decision_loss(build, channel),
        bars(400),
        bars(100, seed=1),
        Training(epochs=6, batch=40, learning_rate=5e-3),
        DRAWS.child(codec.name),
    )
    return accuracies(build(fit.parameters), channel)


def accuracies(codec: Codec, channel: Any) -> tuple[float, float]:
    tested = bars(200, seed=2)
    noiseless, noisy = (
        float(evaluate(codec, channel, tested.frames, tested.labels, level_db, DRAWS.generator())[-1])
        for level_db in (NOISELESS_DB, 0.0)
    )
    return noiseless, noisy


class TestLearning:
    def test_joint_binary(self) -> None:
        noiseless, noisy = learned(joint_ann("binary"), BinarySymmetric())
        assert noiseless > 0.97 and noisy > 0.94

    def test_joint_analogue(self) -> None:
        noiseless, noisy = learned(joint_ann("analogue"), Awgn())
        assert noiseless > 0.97 and noisy > 0.94

    def test_uncoded_map(self) -> None:
        noiseless, noisy = learned(uncoded_map(blocks=1), BinarySymmetric())
        assert noiseless > 0.97 and noisy > 0.94

    def test_neurojscc(self) -> None:
        codec = neurojscc()
        fit = train(
            dict(codec.parameters),
            neurojscc_loss(codec.config, BinarySymmetric()),
            bars(400),
            bars(100, seed=1),
            Training(epochs=12, batch=40, learning_rate=1e-2),
            DRAWS.child("neurojscc"),
        )
        noiseless, noisy = accuracies(NeuroJscc(codec.config, fit.parameters), BinarySymmetric())
        assert noiseless > 0.94 and noisy > 0.9
