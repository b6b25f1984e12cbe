"""Formatting of numbers and texts for the report's terminal output, spreadsheet and HTML page."""

from collections.abc import Mapping

from stillhouse.accelerate.records.report import Bounds
from stillhouse.measure import fidelity, image_metrics
from stillhouse.measure.clock import Ratio

_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def printable(text: str) -> str:
    """Return the text as one line, without unprintable characters, which names and log messages may contain.

    >>> printable("two\\nlines \\x1b[31m")
    'two lines [31m'
    """
    return " ".join("".join(letter for letter in text if letter.isprintable() or letter.isspace()).split())


def format_significant(value: float) -> str:
    """Return a number as text with two or three significant digits, and with commas between thousands.

    >>> format_significant(0.00431), format_significant(7.304), format_significant(51.26), format_significant(1234.5)
    ('0.00431', '7.30', '51.3', '1,234')
    """
    if 0 < abs(value) < 0.0995:
        return f"{value:.3g}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f}"


def format_duration(seconds: float) -> str:
    """Return a duration as text in milliseconds, seconds, minutes or hours, depending on its size.

    >>> format_duration(0.0123), format_duration(2.5), format_duration(250), format_duration(7320)
    ('12.3 ms', '2.50 s', '4 min 10 s', '2 h 2 min')
    """
    if seconds < 0.9995:
        return f"{format_significant(seconds * 1000)} ms"
    if seconds < 99.95:
        return f"{format_significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_bytes(count: int) -> str:
    """Return a number of bytes as text in B, KiB, MiB or GiB, depending on its size.

    >>> format_bytes(3 << 29), format_bytes(500)
    ('1.50 GiB', '500 B')
    """
    unit, step = next((pair for pair in _UNITS if count >= pair[1]), ("B", 1))
    return f"{count} B" if step == 1 else f"{format_significant(count / step)} {unit}"


def format_speedup(value: float) -> str:
    """Return a speed-up as text with an `x`.

    >>> format_speedup(3.417)
    '3.42x'
    """
    return f"{format_significant(value)}x"


def format_interval(ratio: Ratio) -> str:
    """Return the ends of a speed-up's 95 % confidence interval as text.

    >>> format_interval(Ratio(3.4, 3.1, 3.7))
    '3.10 to 3.70'
    """
    return f"{format_significant(ratio.low)} to {format_significant(ratio.high)}"


def format_sqnr(decibels: float) -> str:
    """Return a signal to quantization noise ratio in dB as text without the unit.

    999 (identical outputs) becomes "equal"; -999 (useless outputs, for example NaN) becomes "none".

    >>> format_sqnr(37.14), format_sqnr(999.0), format_sqnr(-999.0)
    ('37.1', 'equal', 'none')
    """
    ends = {fidelity.MAX_SQNR: "equal", fidelity.MIN_SQNR: "none"}
    return ends.get(decibels, f"{decibels:.1f}")


def format_psnr(decibels: float) -> str:
    """Return a peak signal to noise ratio in dB as text without the unit; 99 (identical pictures) becomes "equal".

    >>> format_psnr(24.06), format_psnr(99.0)
    ('24.1', 'equal')
    """
    return "equal" if decibels >= image_metrics.MAX_PSNR else f"{decibels:.1f}"


def format_percent(value: float) -> str:
    """Return a share, 0 to 1, as text in percent.

    >>> format_percent(0.9274)
    '92.7 %'
    """
    return f"{value:.1%}".replace("%", " %")


def describe_bounds(bounds: Bounds) -> tuple[str, ...]:
    """Return a text for each limit of the choice that is not None.

    >>> describe_bounds(Bounds(min_psnr=20.0, max_memory=1 << 31))
    ('PSNR of at least 20 dB', 'at most 2.00 GiB of memory')
    """
    bound_texts = (
        (bounds.min_sqnr, "SQNR of at least {:g} dB"),
        (bounds.min_psnr, "PSNR of at least {:g} dB"),
        (bounds.min_ssim, "SSIM of at least {:g}"),
        (bounds.max_score_drop, f"score at most {{:g}} point{'' if bounds.max_score_drop == 1 else 's'} lower"),
        (None if bounds.min_score is None else 100 * bounds.min_score, "score of at least {:g} %"),
        (None if bounds.max_memory is None else format_bytes(bounds.max_memory), "at most {} of memory"),
        (bounds.max_mae, "a mean absolute error of at most {:g}"),
    )
    return tuple(text.format(value) for value, text in bound_texts if value is not None)


def format_weight_types(weight_types: Mapping[str, int]) -> str:
    """Return a text for the weights that are stored as integers; empty where none is.

    >>> format_weight_types({"int4": 40, "int8": 3})
    'weights: 40 int4, 3 int8'
    """
    counts = ", ".join(f"{count} {kind}" for kind, count in weight_types.items())
    return f"weights: {counts}" if counts else ""


def join_words(words: tuple[str, ...]) -> str:
    """Return words as an enumeration, with commas and a final "and".

    >>> join_words(("one", "two", "three"))
    'one, two and three'
    """
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
