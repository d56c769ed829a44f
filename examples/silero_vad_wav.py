#!/usr/bin/env python3
"""Find the speech in a WAV file with the demo model silero_vad.

    python examples/silero_vad_wav.py speech.wav [--slo-ms 50] [--url http://127.0.0.1:8000]

Needs httpx and numpy, and a running `make serve`. The model hears 32 ms at a time and hands a state
from chunk to chunk, as a live caller would: each chunk is one request with its own deadline, in
JSON, small enough for it. Rules as in the silero-vad package: 512 samples at 16 kHz, after the last
64 of the chunk before.
"""

import argparse
import sys
import wave

import httpx
import numpy as np

RATE_HZ = 16_000
CHUNK = 512
CONTEXT = 64
THRESHOLD = 0.5  # the package's own


def read_wav(path: str) -> np.ndarray:
    """The file's sound as FP32 in [-1, 1], one channel, 16 kHz."""
    with wave.open(path, "rb") as wav:
        rate_hz, num_channels, width = wav.getframerate(), wav.getnchannels(), wav.getsampwidth()
        frames = wav.readframes(wav.getnframes())
    if width != 2:
        raise ValueError(f"{8 * width}-bit samples, this example reads 16-bit ones")
    samples = np.frombuffer(frames, dtype="<i2").reshape(-1, num_channels).mean(axis=1) / 32768.0
    if rate_hz != RATE_HZ:
        # Averaging over one new sample's time first keeps the worst of the aliases out.
        window = max(1, round(rate_hz / RATE_HZ))
        smooth = np.convolve(samples, np.full(window, 1.0 / window), mode="same")
        num_samples = int(len(samples) * RATE_HZ / rate_hz)
        samples = np.interp(
            np.arange(num_samples) * rate_hz / RATE_HZ, np.arange(len(smooth)), smooth
        )
    return samples.astype(np.float32)


def probabilities(url: str, samples: np.ndarray, slo_ms: float) -> tuple[list[float], list[float]]:
    """Speech probability of each chunk, and the server's latency for it in ms."""
    found, latencies_ms = [], []
    state = [0.0] * (2 * 1 * 128)
    padded = np.concatenate([np.zeros(CONTEXT), samples, np.zeros(-len(samples) % CHUNK)])
    with httpx.Client(base_url=url, timeout=60.0) as client:
        for start in range(0, len(padded) - CONTEXT, CHUNK):
            chunk = padded[start : start + CONTEXT + CHUNK].tolist()
            body = {
                "model": "silero_vad",
                "slo_ms": slo_ms,
                "inputs": [
                    {"name": "input", "shape": [1, len(chunk)], "datatype": "FP32", "data": chunk},
                    {"name": "state", "shape": [2, 1, 128], "datatype": "FP32", "data": state},
                    {"name": "sr", "shape": [], "datatype": "INT64", "data": [RATE_HZ]},
                ],
            }
            response = client.post("/infer", json=body)
            answer = response.json()
            if response.status_code != 200:
                raise SystemExit(f"{response.status_code} {answer['reason']}: {answer['error']}")
            outputs = {output["name"]: output["data"] for output in answer["outputs"]}
            found.append(outputs["output"][0])
            state = outputs["stateN"]
            latencies_ms.append(answer["slo"]["latency_ms"])
    return found, latencies_ms


def main() -> None:
    parser = argparse.ArgumentParser(description="Find the speech in a WAV file.")
    parser.add_argument("wav", help="16-bit PCM, any rate, any number of channels")
    parser.add_argument("--slo-ms", type=float, default=100.0, help="answer each chunk within this")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    arguments = parser.parse_args()
    try:
        samples = read_wav(arguments.wav)
    except (OSError, EOFError, ValueError, wave.Error) as error:
        sys.exit(f"{arguments.wav}: {error}")
    try:
        speech, latencies_ms = probabilities(arguments.url, samples, arguments.slo_ms)
    except httpx.TransportError as error:
        sys.exit(f"no answer from {arguments.url}: {error} (is `make serve` running?)")
    chunk_s = CHUNK / RATE_HZ
    is_speech = [False, *(p >= THRESHOLD for p in speech), False]
    starts = [i for i in range(len(speech)) if is_speech[i + 1] and not is_speech[i]]
    ends = [i + 1 for i in range(len(speech)) if is_speech[i + 1] and not is_speech[i + 2]]
    for start, end in zip(starts, ends, strict=True):
        print(f"speech from {start * chunk_s:6.2f} s to {end * chunk_s:6.2f} s")
    if not starts:
        print("no speech")
    median_ms = float(np.median(latencies_ms))
    print(
        f"{len(samples) / RATE_HZ:.2f} s of sound in {len(speech)} requests:"
        f" median latency {median_ms:.1f} ms, highest {max(latencies_ms):.1f} ms"
    )


if __name__ == "__main__":
    main()
