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
# town. Jitter is what retransmissions on the air and the scheduling of a cell add.
NETWORKS: dict[NetworkName, Network | None] = {
    "none": None,
    "lan": Network(up_mbit_s=1000, down_mbit_s=1000, delay_ms=0.2, jitter_ms=0.02),
    "wifi": Network(up_mbit_s=80, down_mbit_s=120, delay_ms=2, jitter_ms=1),
    "4g": Network(up_mbit_s=15, down_mbit_s=40, delay_ms=25, jitter_ms=5),
}
NUM_SAMPLES = 25
NUM_JITTER = 40 * NUM_SAMPLES  # of each way, in turn: 1 in 1,000 is seven times the mean
PICTURE_SIDE = 480  # pixels of the JPEG that `picture` decodes: a phone's thumbnail
# A paragraph, as it is typed into a search box or a chat.
TEXT = "Requests that come too late are worth nothing; those refused at once can go elsewhere. " * 8

Clock = Callable[[], int]


class MissingPillow(Exception):
    """`picture` needs Pillow. The message says how to get it."""


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in nanoseconds. All tuples are samples that take turns; `turn` counts requests."""

    network: Network | None
    preprocess: tuple[int, ...]
    postprocess: tuple[int, ...]
    up_jitter: tuple[int, ...] = (0,)
    down_jitter: tuple[int, ...] = (0,)

    def upload_ns(self, num_bytes: int, turn: int = 0) -> int:
        if self.network is None:
            return 0
        jitter_ns = self.up_jitter[turn % len(self.up_jitter)]
        return _sent(num_bytes, self.network.up_mbit_s, self.network) + jitter_ns

    def download_ns(self, num_bytes: int, turn: int = 0) -> int:
        if self.network is None:
            return 0
        jitter_ns = self.down_jitter[turn % len(self.down_jitter)]
        return _sent(num_bytes, self.network.down_mbit_s, self.network) + jitter_ns

    def before(self, num_bytes: int) -> list[dict[str, int]]:
        """A client's stages ahead of the send of so many bytes, for requests that take turns."""
        stages = []
        for turn in range(max(len(self.preprocess), len(self.up_jitter))):
            work_ns = self.preprocess[turn % len(self.preprocess)]
            stages.append(_taken(preprocess=work_ns, upload=self.upload_ns(num_bytes, turn)))
        return stages

    def after(self, num_bytes: int, turn: int) -> dict[str, int]:
        """Its stages after the last of so many bytes."""
        work_ns = self.postprocess[turn % len(self.postprocess)]
        return _taken(download=self.download_ns(num_bytes, turn), postprocess=work_ns)

    def expected_ms(self, request_bytes: int, reply_bytes: int) -> float:
        """What a client knows beforehand that its own part takes: medians of its work, and means of
        the link.
        """
        work = float(np.median(self.preprocess)) + float(np.median(self.postprocess))
        network = self.network
        link = 0.0
        if network is not None:
            link = 2 * network.jitter_ms * MILLISECOND_NS
            link += _sent(request_bytes, network.up_mbit_s, network)
            link += _sent(reply_bytes, network.down_mbit_s, network)
        return (work + link) / MILLISECOND_NS


def measure(client: Client, clock: Clock = time.perf_counter_ns, *, seed: int = 1) -> Stages:
    """The client's work, timed some dozens of times here and now; the link's jitter, by chance.

    Raises MissingPillow.
    """
    network = NETWORKS[client.network] if isinstance(client.network, str) else client.network
    jitter_ms = 0.0 if network is None else network.jitter_ms
    return Stages(
        network=network,
        up_jitter=_jitter(jitter_ms, (seed, 0)),
        down_jitter=_jitter(jitter_ms, (seed, 1)),
        preprocess=_samples(_preprocess(client.preprocess), clock),
        postprocess=_samples(_postprocess(client.postprocess), clock),
    )


def _sent(num_bytes: int, mbit_s: float, network: Network) -> int:
    """The first bit's way and all bits' time on the link."""
    return round(network.delay_ms * MILLISECOND_NS + num_bytes * 8 / mbit_s * 1000)


def _jitter(mean_ms: float, seed: tuple[int, int]) -> tuple[int, ...]:
    if not mean_ms:
        return (0,)
    drawn = np.random.default_rng(seed).exponential(mean_ms * MILLISECOND_NS, NUM_JITTER)
    return tuple(int(duration_ns) for duration_ns in drawn)


def _taken(**stages: int) -> dict[str, int]:
    """Without those that take no time."""
    return {name: duration_ns for name, duration_ns in stages.items() if duration_ns}


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
