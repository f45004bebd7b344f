"""Data that is local like an image, but is not one: sound, text, volumes.

    sound    16-bit PCM; a waveform [L, 1] float32 from -1 to 1, or the logarithm of its mel
             spectrogram [T, mels, 1] float32
    text     characters or bytes as codes [L] uint8, made one-hot on the device; a network's first
             layer `conv1-K` or `embedK` embeds them. Or words as codes [L] uint16, which only
             `embedK` takes: 0 is padding, 1 a word that the training split lacks
    volume   [D, H, W, C] uint8 or float32

A spectrogram's frames are 25 ms long and 10 ms apart, with a Hann window; the mel scale is m = 2595
log10(1 + f/700) (O'Shaughnessy 1987, Speech Communication, page 150), with triangular filters from
0 to half the rate.
"""

import collections
import functools
import io
import re
import wave
from collections.abc import Callable, Iterable

import numpy as np

from jaxconv.data.interface import DamagedError

_WINDOW, _HOP = 0.025, 0.010  # seconds
_FLOOR = 1e-6  # power below which all is silence; 16-bit rounding is near 1e-10 per sample

BYTES = 256
# The code of a word that the vocabulary lacks; 0 is padding.
UNKNOWN = 1
# The most words of a vocabulary: codes are uint16.
MOST_WORDS = 2**16 - 2
_WORD = re.compile(r"\w+|'\w+|[^\w\s]")


def read_wav(data: bytes, rate: int) -> np.ndarray:
    """Samples [L] float32 from -1 to 1 of a WAV file; several channels are averaged.

    Args:
      data: the file's content.
      rate: the required sample rate.

    Raises:
      DamagedError: the content is not a WAV file, not 16-bit PCM, or has another rate.
    """
    try:
        with wave.open(io.BytesIO(_simple(data))) as file:
            channels, width, found = file.getnchannels(), file.getsampwidth(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        raise DamagedError(
            f"cannot be read as a WAV file of PCM samples ({str(error) or 'it ends too early'})"
        ) from error
    if width != 2:
        raise DamagedError(f"has {8 * width} bits per sample; save it with 16")
    if found != rate:
        raise DamagedError(f"has {found} samples per second, but config.data.audio.rate is {rate}")
    if len(content) < 2 * channels:
        raise DamagedError("holds no samples")
    samples = np.frombuffer(content, "<i2", len(content) // (2 * channels) * channels)
    return samples.reshape(-1, channels).mean(axis=1, dtype=np.float32) / 32768


def fit_length(samples: np.ndarray, length: int) -> np.ndarray:
    """The middle `length` of the samples [L]; shorter sounds are padded on both sides with 0."""
    start = max(0, (len(samples) - length) // 2)
    samples = samples[start : start + length]
    before = (length - len(samples)) // 2
    return np.pad(samples, (before, length - len(samples) - before))


def _simple(data: bytes) -> bytes:
    """Retag a PCM WAV file with an extensible header as simple, which Python 3.11 requires."""
    place = data.find(b"fmt ", 12) + 8
    if data[place : place + 2] == b"\xfe\xff" and data[place + 24 : place + 26] == b"\x01\x00":
        return data[:place] + b"\x01\x00" + data[place + 2 :]
    return data


def log_mel(samples: np.ndarray, rate: int, mels: int) -> np.ndarray:
    """The natural logarithm of the mel spectrogram [T, mels] float32 of samples [L].

    T = 1 + (L - window)/hop.
    """
    window, hop = round(_WINDOW * rate), round(_HOP * rate)
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    points = 1 << (window - 1).bit_length()
    spectrum = np.fft.rfft(frames * np.hanning(window).astype(np.float32), points)
    power = (np.abs(spectrum) ** 2).astype(np.float32) / window
    # Not a matrix product: its threads would wait for cores that training keeps busy, and take a
    # hundred times as long.
    return np.log(np.einsum("tf,fm->tm", power, mel_filters(points, rate, mels)) + _FLOOR).astype(
        np.float32
    )


@functools.lru_cache(maxsize=4)
def mel_filters(points: int, rate: int, mels: int) -> np.ndarray:
    """Triangular filters [points/2 + 1, mels] float32 over the frequencies of a Fourier transform.

    Neighbouring filters cross at one half.
    """
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    frequency = np.linspace(0, rate / 2, points // 2 + 1)[:, None]
    rising = (frequency - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequency) / (corners[2:] - corners[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)


def split_words(text: str) -> list[str]:
    """The words of a text in small letters; a punctuation mark is a word, and so is `'s`."""
    return _WORD.findall(text.lower())


def vocabulary_of(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """The most frequent words of the texts, at most `most`, the most frequent first."""
    counts = collections.Counter(word for text in texts for word in split_words(text))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:most])


# How a text becomes codes: characters, coded 1, 2 ... in this order, all others 0; empty for the
# bytes of UTF-8; or the words of a vocabulary, coded 2, 3 ... in this order, all others 1.
Alphabet = str | tuple[str, ...]


def text_encoder(length: int, alphabet: Alphabet) -> Callable[[str], np.ndarray]:
    """A function from a text to its codes [length], truncated or padded with 0.

    The codes are uint8, of words uint16.
    """
    words = isinstance(alphabet, tuple)
    codes = {symbol: number for number, symbol in enumerate(alphabet, 2 if words else 1)}

    def encode(text: str) -> np.ndarray:
        if words:
            values = [codes.get(word, UNKNOWN) for word in split_words(text)[:length]]
        elif alphabet:
            values = [codes.get(character, 0) for character in text[:length]]
        else:
            values = np.frombuffer(text.encode()[:length], np.uint8)
        values = np.array(values, np.uint16 if words else np.uint8)
        return np.pad(values, (0, length - len(values)))

    return encode


def encode_text(text: str, length: int, alphabet: Alphabet) -> np.ndarray:
    """Codes [length] of a text, see `text_encoder`."""
    return text_encoder(length, alphabet)(text)


def decode_text(codes: np.ndarray, alphabet: Alphabet) -> str:
    """The text of codes [L], without padding; an unknown character or word is U+FFFD."""
    if isinstance(alphabet, tuple):
        return " ".join(letters_of(codes, alphabet))
    if not alphabet:
        return bytes(codes.tolist()).rstrip(b"\0").decode(errors="replace")
    return "".join(("\ufffd" + alphabet)[code] for code in np.trim_zeros(codes, "b"))


def letters_of(codes: np.ndarray, alphabet: Alphabet) -> list[str]:
    """The character or the word at each of the codes [L] of a text, without padding.

    A character of several bytes is at its first byte; the others are empty.
    """
    if isinstance(alphabet, tuple):
        symbols = ("", "\ufffd", *alphabet)
        return [symbols[code] for code in np.trim_zeros(codes, "b")]
    if alphabet:
        return list(decode_text(codes, alphabet))
    letters = []
    for letter in bytes(codes.tolist()).rstrip(b"\0").decode(errors="surrogateescape"):
        length = len(letter.encode(errors="surrogateescape"))
        letters += ["\ufffd" if "\ud800" <= letter <= "\udfff" else letter, *[""] * (length - 1)]
    return letters


def count_codes(alphabet: Alphabet) -> int:
    """V: the number of codes of `encode_text`."""
    if isinstance(alphabet, tuple):
        return len(alphabet) + 2
    return len(alphabet) + 1 if alphabet else BYTES


def read_volume(data: bytes) -> np.ndarray:
    """A volume [D, H, W, C], uint8 or float32, from a .npy file [D, H, W] or [D, H, W, C].

    Raises:
      DamagedError: the content is not such an array.
    """
    volume = read_numbers(data)
    if volume.ndim not in (3, 4):
        raise DamagedError(f"has shape {volume.shape}; a volume is [D, H, W] or [D, H, W, C]")
    return volume[..., None] if volume.ndim == 3 else volume


def read_numbers(data: bytes) -> np.ndarray:
    """The array of a .npy file, uint8 or float32.

    Raises:
      DamagedError: the content is not such a file, or the array is a scalar, empty, not finite or
        of another type.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy's readers raise many kinds of errors for damaged bytes
        raise DamagedError(
            f"cannot be read as a .npy file ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(array, np.ndarray) or not array.size or not array.ndim:
        raise DamagedError(
            f"has shape {getattr(array, 'shape', None)}; it must be one array of numbers"
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise DamagedError("holds numbers that are infinite or NaN")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DamagedError(f"has numbers of type {array.dtype}; save it as uint8 or float32")
    return array if array.dtype == np.uint8 else array.astype(np.float32)


def to_unit(values: np.ndarray) -> np.ndarray:
    """float32 on the scale of `config.data.mean` and `std`: uint8 is divided by 255."""
    return (
        values.astype(np.float32) / 255 if values.dtype == np.uint8 else values.astype(np.float32)
    )
