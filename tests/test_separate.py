"""Separate coding: 5G NR's short codes, entropy coding that is exact, vector quantisation, labels."""

import hashlib
import math
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from codec_contract import CLASSES, SIZE, STEPS, bars, check_codec
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defiance.codecs.codec import NOISELESS_DB, Training, evaluate, train
from defiance.codecs.conventional import Shape
from defiance.codecs.entropy import LEVEL_BITS, Level, MapCoder, MapCoderConfig
from defiance.codecs.events import frames as binned
from defiance.codecs.events.formats import read
from defiance.codecs.separate import (
    LDPC_BITS,
    Label,
    LabelConfig,
    Protection,
    Separate,
    SeparateConfig,
    Source,
    codewords,
    label_loss,
    rate_adapted,
    residue,
    separate_loss,
)
from defiance.codecs.vq import Vq, VqConfig, vq_loss
from defiance.errors import DefianceError
from defiance.radio.channels import Antipodal, Awgn, BinarySymmetric
from defiance.recordings import data_folder
from defiance.seeding import stream

DRAWS = stream(11, "separate")
NMNIST = data_folder() / "nmnist/nmnist_train1000.npz"


def random_bits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(2, shape, generator=stream(seed, "bits").generator()).float()


class TestProtection:
    @pytest.mark.parametrize(("bits", "distance"), [(3, 16), (6, 16), (7, 12), (10, 12), (11, 10)])
    def test_small_blocks_are_as_far_apart_as_the_standards_code(self, bits: int, distance: int) -> None:
        words = ((torch.arange(1, 1 << bits)[:, None] >> torch.arange(bits)) & 1).float()
        assert int(Protection(bits, 32).encode(words).sum(1).min()) == distance

    @pytest.mark.parametrize(
        ("bits", "uses"),
        [(1, 2), (2, 5), (4, 15), (8, 15), (11, 60), (11, 100), (12, 15), (12, 240), (100, 150)],
    )
    def test_there_and_back(self, bits: int, uses: int) -> None:
        protection, sent = Protection(bits, uses), random_bits(5, bits)
        coded = protection.encode(sent)
        assert coded.shape == (5, protection.uses) and bool(((coded == 0) | (coded == 1)).all())
        assert torch.equal(protection.decode(coded), sent)

    def test_few_errors_are_corrected(self) -> None:
        protection, sent = Protection(6, 32), random_bits(50, 6)
        coded = protection.encode(sent)
        coded[:, torch.randperm(32, generator=DRAWS.generator())[:7]] -= 1  # of distance 16: 7 are corrected
        assert torch.equal(protection.decode(coded.abs()), sent)

    @pytest.mark.parametrize(("bits", "level_db"), [(8, -7.0), (40, -3.0)])
    def test_soft_values_help(self, bits: int, level_db: float) -> None:
        protection, sent = Protection(bits, 100), random_bits(300, bits)

        def block_errors(channel: Antipodal) -> float:
            received = channel(protection.encode(sent), level_db, DRAWS.generator())
            return float((protection.decode(received) != sent).any(1).double().mean())

        soft, hard = block_errors(Antipodal(Awgn())), block_errors(Antipodal(Awgn(), "hard"))
        assert soft < 0.5 * hard

    def test_ratios_of_constant_size_cost_nothing(self) -> None:
        """At the waterfall: as good as with the channel's own ratios, which need Eb/N0."""
        protection, sent, channel = Protection(48, 160), random_bits(400, 48), BinarySymmetric()
        received = channel(protection.encode(sent), -1.5, DRAWS.generator())
        errors = (protection.decode(received) != sent).any(1).double().mean()
        informed = protection.code.decode(channel.llr(received, -1.5))
        assert 0.01 < float(errors) < 0.5
        assert float(errors) == pytest.approx(float((informed != sent).any(1).double().mean()), abs=0.03)

    def test_repeats_are_added_up(self) -> None:
        protection, sent = Protection(12, 240), random_bits(200, 12)
        received = BinarySymmetric()(protection.encode(sent), -7.0, DRAWS.generator())
        assert float((protection.decode(received) != sent).any(1).double().mean()) < 0.2
        assert protection.code.n == 60

    def test_impossible_codes_are_refused(self) -> None:
        for bits, uses in ((0, 10), (10, 10), (240, 250)):
            with pytest.raises(DefianceError):
                Protection(bits, uses)


LEVELS = (Level(6, 2, 1), Level(6, 1, 1), Level(3, 1, 4))
MAPS = MapCoderConfig(SIZE, 3, LEVELS)


@cache
def map_coder() -> MapCoder:
    return MapCoder(MAPS, MapCoder.count(MAPS, bars(200).frames))


def frames_of(seed: int, density: float) -> Tensor:
    draws = torch.rand(2, STEPS, 2, SIZE, SIZE, generator=stream(seed, "frames").generator())
    return (draws < density).byte()


class TestMapCoder:
    @settings(max_examples=25)
    @given(st.integers(0, 10_000), st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), st.integers(1, 400))
    def test_there_and_back(self, seed: int, density: float, bits: int) -> None:
        """Any map, however unlike those counted, and any budget: what fits comes back."""
        frames, coder = frames_of(seed, density), map_coder()
        compressed = coder.compress(frames, bits)
        assert compressed.shape == (2, bits)
        restored = coder.restore(compressed)
        assert torch.equal(restored, coder.distort(frames, bits, torch.zeros(2, bits, dtype=torch.bool)))
        header = compressed[:, :LEVEL_BITS]
        assert torch.equal((restored != 0).flatten(1).any(1), header.any(1))

    def test_lossless_at_the_finest_level(self) -> None:
        frames = bars(20, seed=3).frames
        restored = map_coder().restore(map_coder().compress(frames, 400))
        counts = frames.view(20, 3, 2, 2, 6, 2, 6, 2).sum((2, 5, 7))
        assert torch.equal(restored, (counts > 0).float().mul(2).sub(1).flatten(1, 2))

    def test_fewer_bits_mean_a_coarser_level(self) -> None:
        frames, weights = bars(50, seed=3).frames, 2 ** torch.arange(LEVEL_BITS)
        levels = [
            (map_coder().compress(frames, bits)[:, :LEVEL_BITS].long() * weights).sum(1).double()
            for bits in (400, 70, 40)
        ]
        assert levels[0].mean() == 1.0 < levels[1].mean() < levels[2].mean()

    def test_length_is_near_the_entropy(self) -> None:
        """The stack holds the ideal code length and at most its own 24 bits of precision."""
        generator = DRAWS.child("uniform").generator()
        training = (torch.rand(2000, 3, 2, 4, 4, generator=generator) < 0.25).byte()
        tested = (torch.rand(200, 3, 2, 4, 4, generator=generator) < 0.25).byte()
        config = MapCoderConfig(4, 3, (Level(4, 2, 1),))
        coder = MapCoder(config, MapCoder.count(config, training))
        compressed = coder.compress(tested, 200)[:, LEVEL_BITS:]
        length = (compressed * torch.arange(1, 198)).amax(1).mean()
        ideal = 96 * -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
        assert ideal < float(length) < ideal + 24 + 0.04 * ideal  # 4 %: contexts seen few times

    @settings(max_examples=25)
    @given(st.integers(0, 1000), st.integers(LEVEL_BITS, 120))
    def test_changed_bits_are_noticed(self, seed: int, place: int) -> None:
        frames, coder = bars(2, seed).frames, map_coder()
        errors = torch.zeros(2, 121, dtype=torch.bool)
        errors[0, place] = True
        changed = (coder.compress(frames, 121).bool() ^ errors).float()
        assert torch.equal(coder.restore(changed), coder.distort(frames, 121, errors))

    @settings(max_examples=25)
    @given(st.integers(1, 300), st.integers(0, 10_000))
    def test_any_bits_are_read(self, bits: int, seed: int) -> None:
        restored = map_coder().restore(random_bits(4, bits, seed=seed))
        assert bool(((restored == 0) | (restored.abs() == 1)).all())

    def test_random_bits_are_no_map(self) -> None:
        assert not map_coder().restore(random_bits(500, 100)).any()

    def test_golden(self) -> None:
        """The same bits on every machine: tables are integers, and ANS is exact."""
        coder = map_coder()
        assert all(table.dtype == torch.int32 for table in coder.tables.values())
        bits = coder.compress(bars(50, seed=4).frames, 120).byte().numpy()
        assert hashlib.sha256(np.packbits(bits).tobytes()).hexdigest()[:16] == "7de3370748c48fdc"

    def test_order_of_counting_does_not_matter(self) -> None:
        frames = bars(200).frames
        for name, table in MapCoder.count(MAPS, frames.flip(0)).items():
            assert torch.equal(table, map_coder().tables[name])

    def test_too_many_levels_are_refused(self) -> None:
        with pytest.raises(DefianceError, match="1 to 7 levels, got 8"):
            MapCoderConfig(SIZE, 3, 8 * LEVELS[:1])

    @pytest.mark.skipif(not NMNIST.exists(), reason=f"no data: {NMNIST}")
    def test_real_recordings(self) -> None:
        recordings = read(NMNIST)[0].select(torch.arange(200))
        seen = binned(recordings, 15, 315_000)
        coder = MapCoder(MapCoderConfig(), MapCoder.count(MapCoderConfig(), seen[:150]))
        errors = torch.zeros(50, 1000, dtype=torch.bool)
        for bits, known in ((1000, 1.0), (240, 1.0), (120, 0.95), (20, 0.0)):
            restored = coder.restore(coder.compress(seen[150:], bits))
            assert torch.equal(restored, coder.distort(seen[150:], bits, errors[:, :bits]))
            assert float((restored != 0).flatten(1).any(1).double().mean()) >= known


QUANTISER = VqConfig(SIZE, 3, cells=6, threshold=1, groups=8, index_bits=3, width=2, hidden=32)


@cache
def quantiser() -> Vq:
    fit = train(
        Vq.initial(QUANTISER, DRAWS.generator()),
        vq_loss(QUANTISER),
        bars(400),
        bars(100, seed=1),
        Training(epochs=15, batch=20, learning_rate=1e-2),
        DRAWS.child("vq"),
    )
    assert fit.validation_loss.min() < 0.5 * fit.validation_loss[0]
    return Vq(QUANTISER, fit.parameters)


class TestVq:
    @pytest.mark.parametrize("bits", [1, 2, 3, 10, 24, 40])
    def test_any_budget(self, bits: int) -> None:
        compressed = quantiser().compress(bars(5).frames, bits)
        assert compressed.shape == (5, bits) and not compressed[:, min(bits // 3 * 3, 24) :].any()
        restored = quantiser().restore(compressed)
        assert restored.shape == (5, 6, 6, 6) and bool((restored.abs() <= 1).all())

    def test_fewer_bits_are_the_first_ones(self) -> None:
        frames = bars(5).frames
        assert torch.equal(quantiser().compress(frames, 24)[:, :12], quantiser().compress(frames, 12))

    def test_more_bits_restore_better(self) -> None:
        frames = bars(200, seed=5).frames
        target = (frames.view(200, 3, 2, 2, 6, 2, 6, 2).sum((2, 5, 7)) > 0).float().mul(2).sub(1)
        wrong = [
            float(
                ((quantiser().restore(quantiser().compress(frames, bits)) > 0) != (target > 0).flatten(1, 2))
                .double()
                .mean()
            )
            for bits in (1, 6, 24)
        ]
        assert wrong[0] > wrong[1] > wrong[2]

    def test_nearest_codeword(self) -> None:
        index = quantiser().compress(bars(30).frames, 24).view(30, 8, 3) @ torch.tensor([1.0, 2.0, 4.0])
        assert torch.equal(index.long(), quantiser()._distance(bars(30).frames).argmin(-1))


class TestResidue:
    def test_errors_are_those_of_the_code(self) -> None:
        protection, channel = Protection(8, 30), BinarySymmetric()
        left = residue(protection, channel, (-6.0, 0.0, 9.0), DRAWS.generator(), patterns=2000)
        assert not left.errors[2].any()
        sent = random_bits(2000, 8, seed=9)
        received = channel(protection.encode(sent), -6.0, DRAWS.child("again").generator())
        wrong = (protection.decode(received) != sent).double().mean()
        assert float(left.errors[0].double().mean()) == pytest.approx(float(wrong), rel=0.1)

    def test_the_nearest_level_is_drawn(self) -> None:
        left = residue(Protection(4, 5), BinarySymmetric(), (-9.0, 20.0), DRAWS.generator(), patterns=300)
        ebn0_db = torch.tensor([[-30.0], [5.0], [6.0], [50.0]]).repeat(100, 1)
        wrong = left.draw(ebn0_db, DRAWS.generator()).any(1).view(100, 4).double().mean(0)
        assert bool((wrong[:2] > 0.3).all()) and not wrong[2:].any()


SHAPE = Shape(STEPS, 10, SIZE, CLASSES)


@pytest.mark.parametrize("kind", ["vq", "entropy"])
class TestSeparate:
    def source(self, kind: str) -> Source:
        return quantiser() if kind == "vq" else map_coder()

    def test_contract(self, kind: str) -> None:
        config = SeparateConfig(48, SHAPE, 6)
        codec = Separate(config, self.source(kind), Separate.initial(config, DRAWS.generator()))
        check_codec(codec, bars(5).frames, blocks=1)
        assert codec.name.endswith("-48/60")

    def test_learns_and_adapts_its_rate(self, kind: str) -> None:
        source, channel = self.source(kind), BinarySymmetric()
        configs = [SeparateConfig(bits, SHAPE, 6) for bits in ((6, 24) if kind == "vq" else (15, 50))]
        left = [
            residue(config.protection, channel, (-6.0, -3.0, 0.0, 3.0, 6.0), DRAWS.generator(), patterns=100)
            for config in configs
        ]
        fit = train(
            Separate.initial(configs[0], DRAWS.generator()),
            separate_loss(configs, source, left),
            bars(400),
            bars(100, seed=1),
            Training(epochs=5, batch=40, learning_rate=5e-3),
            DRAWS.child(kind),
        )
        codecs = [Separate(config, source, fit.parameters) for config in configs]
        tested = bars(100, seed=2)

        def accuracy(codec: Separate, level_db: float) -> float:
            draws = DRAWS.generator()
            return float(evaluate(codec, channel, tested.frames, tested.labels, level_db, draws)[-1])

        assert accuracy(codecs[1], NOISELESS_DB) > 0.95
        if kind == "vq":
            low, high = rate_adapted(codecs, channel, bars(100, seed=1), (-7.0, 6.0), DRAWS.child("adapt"))
            assert low is codecs[0] and accuracy(codecs[0], -7.0) > accuracy(codecs[1], -7.0)
            assert accuracy(high, 6.0) > 0.95  # type: ignore[arg-type]

    def test_bursts_are_refused(self, kind: str) -> None:
        with pytest.raises(DefianceError, match="one block, got 3"):
            SeparateConfig(24, Shape(STEPS, 10, SIZE, CLASSES, 3, 3), 6)


class TestLabel:
    @pytest.mark.parametrize("uses", [20, 60, 480])
    def test_codewords_are_far_apart(self, uses: int) -> None:
        """Ten words cannot all differ in more than 5/9 of their places (Plotkin)."""
        words = codewords(10, uses)
        apart = min(int((words[a] != words[b]).sum()) for a, b in combinations(range(10), 2))
        assert 0.47 * uses < apart <= 5 / 9 * uses
        if uses == 480:
            assert apart > 0.545 * uses

    def test_better_than_the_simplex_code(self) -> None:
        """The union bound at 0 dB, against 4 bits in a repeated (15, 4) simplex code."""
        label, columns = torch.arange(10)[:, None], torch.arange(60) % 15 + 1
        simplex = sum(((label >> place) & 1) * ((columns >> place) & 1) for place in range(4)) % 2

        def bound(words: Tensor) -> float:
            distance = torch.cdist(words.float(), words.float(), p=1)
            return float((0.84**distance).sum())

        assert isinstance(simplex, Tensor) and bound(codewords(10, 60)) < bound(simplex)

    def test_too_many_classes_are_refused(self) -> None:
        with pytest.raises(DefianceError, match="2 to 12 classes, got 13"):
            codewords(13, 20)

    @pytest.mark.parametrize("blocks", [1, 3])
    def test_contract_and_learning(self, blocks: int) -> None:
        config = LabelConfig(Shape(STEPS, 10, SIZE, CLASSES, 3, blocks), hidden=32)
        initial = Label.initial(config, DRAWS.generator())
        check_codec(Label(config, initial), bars(5).frames, blocks=blocks)
        fit = train(
            initial,
            label_loss(config),
            bars(400),
            bars(100, seed=1),
            Training(epochs=6, batch=40, learning_rate=5e-3),
            DRAWS.child("label", blocks),
        )
        tested, codec = bars(100, seed=2), Label(config, fit.parameters)
        for level_db in (NOISELESS_DB, -3.0):
            right = evaluate(
                codec, BinarySymmetric(), tested.frames, tested.labels, level_db, DRAWS.generator()
            )
            assert float(right[-1]) > 0.95


def test_small_blocks_end_where_ldpc_begins() -> None:
    for bits in (LDPC_BITS - 1, LDPC_BITS):
        sent = random_bits(20, bits)
        protection = Protection(bits, 60)
        received = BinarySymmetric()(protection.encode(sent), 3.0, DRAWS.generator())
        assert torch.equal(protection.decode(received), sent)
