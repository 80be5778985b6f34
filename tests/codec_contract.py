"""What every codec keeps to, and bars that move as something easy to tell apart."""

import torch
from torch import Tensor

from defiance.codecs.codec import Codec, Samples
from defiance.seeding import stream

torch.set_num_threads(1)  # two would wait for each other on tensors as small as these
STEPS, SIZE, CLASSES = 6, 12, 4


def bars(recordings: int, seed: int = 0) -> Samples:
    """Return recordings of a bar: its direction and half of the sensor are the class; noise around it."""
    generator = stream(seed, "bars").generator()
    labels = torch.randint(CLASSES, (recordings,), generator=generator)
    frames = torch.rand(recordings, STEPS, 2, SIZE, SIZE, generator=generator) < 0.005
    for row, label in enumerate(labels.tolist()):
        start = int(torch.randint(2, (), generator=generator)) + (6 if label % 2 else 0)
        for step in range(STEPS):
            place = start + step // 2
            bar = frames[row, step, step % 2]
            (bar if label < 2 else bar.T)[place, 2:-2] = True
    return Samples(frames.byte(), labels)


def check_codec(codec: Codec, frames: Tensor, *, binary: bool = True, blocks: int | None = None) -> None:
    """Check shapes, alphabet, determinism, and that neither half looks ahead.

    Args:
        codec: any.
        frames: uint8 [B, T, 2, H, W].
        binary: zeros and ones; else reals of unit mean energy.
        blocks: bursts in which a block code sends; None for a code that sends at every step.
    """

    def encode(frames: Tensor) -> Tensor:
        with torch.no_grad():
            return codec.encode(frames, stream(1, "contract").generator())

    batch, steps = frames.shape[:2]
    assert codec.steps == steps and codec.name
    sent = encode(frames)
    assert sent.dtype == torch.float32 and sent.shape == (batch, steps, codec.channel_uses // steps)
    assert torch.equal(sent, encode(frames))
    if binary:
        assert bool(((sent == 0) | (sent == 1)).all())
    else:
        torch.testing.assert_close(sent.square().mean((1, 2)), torch.ones(batch), rtol=1e-4, atol=0)

    with torch.no_grad():
        logits = codec.decode(sent)
    assert logits.dim() == 3 and logits.shape[:2] == (batch, steps)
    length = 1 if blocks is None else steps // blocks
    for end in range(length, steps, length):
        later = frames.clone()
        later[:, end:] = torch.randint(5, later[:, end:].shape, dtype=torch.uint8)
        assert torch.equal(encode(later)[:, :end], sent[:, :end]), "the device looked ahead"
        changed = sent.clone()
        changed[:, end:] = 1 - changed[:, end:]
        with torch.no_grad():
            torch.testing.assert_close(codec.decode(changed)[:, :end], logits[:, :end], rtol=1e-4, atol=1e-5)
    if length > 1:
        assert not logits[:, : length - 1].any(), "a block code cannot know yet"
        held = logits[:, length - 1 :].unflatten(0, (batch,))
        for step in range(length - 1, steps - 1):
            if (step + 2) % length:
                assert torch.equal(logits[:, step], logits[:, step + 1])
        assert bool(held.any())
