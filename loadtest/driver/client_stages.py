"""What a client does around a request, and its link: time before the send and after the answer.

Owns profiles of links and the work of pre- and post-processing. Each request is a client of its
own: its stages take time and nobody else's, so the driver shifts sends and adds to latencies
instead of waiting (docs/benchmarks.md). Work is measured on the driver's core; links are sums.
"""

import io
import re
import time
from collections.abc import Callable

import msgspec
import numpy as np

from loadtest.driver.job import Client, Network, NetworkName, Postprocess, Preprocess
from scheduler.spec import MILLISECOND_NS

# Delays are one way. Typical, not best: a wired office, 802.11ac with a wall between, LTE in a
# town.
NETWORKS: dict[NetworkName, Network | None] = {
    "none": None,
    "lan": Network(up_mbit_s=1000, down_mbit_s=1000, delay_ms=0.2),
    "wifi": Network(up_mbit_s=80, down_mbit_s=120, delay_ms=2),
    "4g": Network(up_mbit_s=15, down_mbit_s=40, delay_ms=25),
}
NUM_SAMPLES = 25
PICTURE_SIDE = 480  # pixels of the JPEG that `picture` decodes: a phone's thumbnail
# A paragraph, as it is typed into a search box or a chat.
TEXT = "Requests that come too late are worth nothing; those refused at once can go elsewhere. " * 8

Clock = Callable[[], int]


class MissingPillow(Exception):
    """`picture` needs Pillow. The message says how to get it."""


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in nanoseconds. `preprocess` and `postprocess` are samples that take turns."""

    network: Network | None
    preprocess: tuple[int, ...]
    postprocess: tuple[int, ...]

    def upload_ns(self, num_bytes: int) -> int:
        return 0 if self.network is None else _sent(num_bytes, self.network.up_mbit_s, self.network)

    def download_ns(self, num_bytes: int) -> int:
        if self.network is None:
            return 0
        return _sent(num_bytes, self.network.down_mbit_s, self.network)

    def expected_ms(self, request_bytes: int, reply_bytes: int) -> float:
        """What a client knows beforehand that its own part takes: medians and the link."""
        work = float(np.median(self.preprocess)) + float(np.median(self.postprocess))
        link = self.upload_ns(request_bytes) + self.download_ns(reply_bytes)
        return (work + link) / MILLISECOND_NS


def measure(client: Client, clock: Clock = time.perf_counter_ns) -> Stages:
    """The client's work, timed some dozens of times here and now. Raises MissingPillow."""
    network = client.network
    return Stages(
        network=NETWORKS[network] if isinstance(network, str) else network,
        preprocess=_samples(_preprocess(client.preprocess), clock),
        postprocess=_samples(_postprocess(client.postprocess), clock),
    )


def _sent(num_bytes: int, mbit_s: float, network: Network) -> int:
    """The first bit's way and all bits' time on the link."""
    return round(network.delay_ms * MILLISECOND_NS + num_bytes * 8 / mbit_s * 1000)


def _samples(work: Callable[[], object] | None, clock: Clock) -> tuple[int, ...]:
    if work is None:
        return (0,)
    work()
    samples = []
    for _ in range(NUM_SAMPLES):
        begin_ns = clock()
        work()
        samples.append(clock() - begin_ns)
    return tuple(samples)


def _preprocess(kind: Preprocess) -> Callable[[], object] | None:
    chance = np.random.default_rng(1)
    match kind:
        case "none":
            return None
        case "normalize":
            pixels = chance.integers(0, 256, (3, 224, 224), np.uint8)
            return lambda: (pixels.astype(np.float32) / 255 - 0.45) / 0.225
        case "picture":
            return _picture(chance)
        case "tokens":
            table = {word: number for number, word in enumerate(sorted(set(TEXT.split())))}
            return lambda: [table.get(word, 0) for word in re.findall(r"\S+", TEXT)]


def _postprocess(kind: Postprocess) -> Callable[[], object] | None:
    if kind == "none":
        return None
    scores = np.random.default_rng(2).standard_normal(1000)

    def top5() -> object:
        """Softmax over a thousand classes, and the five best."""
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        best = np.argpartition(shares, -5)[-5:]
        return best[np.argsort(shares[best])]

    return top5


def _picture(chance: np.random.Generator) -> Callable[[], object]:
    """A JPEG decoded, scaled to 224 x 224 and normalised."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPillow(
            "preprocess: picture needs Pillow: pip install 'remontoir[examples]'"
        ) from error
    coarse = chance.integers(0, 256, (16, 16, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=90)

    def work() -> object:
        small = Image.open(io.BytesIO(stored.getvalue())).resize((224, 224))
        pixels = np.asarray(small, np.float32).transpose(2, 0, 1)
        return (pixels / 255 - 0.45) / 0.225

    return work
