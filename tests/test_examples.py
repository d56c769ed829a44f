"""The examples' own work, before and after the request: pictures and sounds to tensors."""

import importlib.util
import wave
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wav(path: Path, channels: list[np.ndarray], *, rate_hz: int, width: int = 2) -> None:
    samples = np.stack(channels, axis=1)
    with wave.open(str(path), "wb") as wav:
        wav.setnchannels(len(channels))
        wav.setsampwidth(width)
        wav.setframerate(rate_hz)
        wav.writeframes((samples * 32767).astype("<i2").tobytes())


def test_an_image_becomes_one_row_of_bgr_without_the_mean() -> None:
    tensor = example("open_nsfw_image").tensor_of(
        Image.new("RGBA", (640, 300), (200, 100, 50, 255))
    )
    assert tensor.shape == (1, 224, 224, 3)
    assert tensor.dtype == np.float32
    # JPEG may be off by one
    assert np.allclose(tensor[0, 112, 112], [50 - 104, 100 - 117, 200 - 123], atol=1.5)


def test_a_sound_at_its_own_rate_is_read_as_it_is(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(np.arange(1_600) * 2 * np.pi * 440 / 16_000)
    write_wav(tmp_path / "a.wav", [tone], rate_hz=16_000)
    samples = example("silero_vad_wav").read_wav(str(tmp_path / "a.wav"))
    assert samples.dtype == np.float32
    assert np.allclose(samples, tone, atol=1e-4)


def test_other_rates_and_channels_become_one_channel_at_16_khz(tmp_path: Path) -> None:
    at_48_khz = 0.5 * np.sin(np.arange(4_800) * 2 * np.pi * 440 / 48_000)
    write_wav(tmp_path / "a.wav", [at_48_khz, np.zeros(4_800)], rate_hz=48_000)
    samples = example("silero_vad_wav").read_wav(str(tmp_path / "a.wav"))
    assert len(samples) == 1_600
    expected = 0.25 * np.sin(np.arange(1_600) * 2 * np.pi * 440 / 16_000)
    assert np.allclose(samples[10:-10], expected[10:-10], atol=0.01)


def test_a_sample_width_it_cannot_read_is_named(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", [np.zeros(16)], rate_hz=16_000, width=1)
    with pytest.raises(ValueError, match="8-bit samples, this example reads 16-bit ones"):
        example("silero_vad_wav").read_wav(str(tmp_path / "a.wav"))
