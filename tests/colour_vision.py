"""Colours as they look to those who see fewer.

The matrices of Machado, Oliveira and Fernandes (2009) at full strength, and CIELAB distances.
"""

import numpy as np

SEEN = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour) -> np.ndarray:
    """Linear RGB of "#0072B2" or of three bytes."""
    given = [int(colour[i : i + 2], 16) for i in (1, 3, 5)] if isinstance(colour, str) else colour
    value = np.asarray(given, dtype=float)[..., :3] / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(colour, sight: str = "all cones") -> np.ndarray:
    """CIELAB of a colour as this sight has it."""
    xyz = np.clip(SEEN[sight] @ linear(colour), 0, 1) @ _XYZ.T / np.array([0.95047, 1.0, 1.08883])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(one, other) -> float:
    """The least distance of two colours over all kinds of sight; 2.3 is just noticeable."""
    return min(float(np.linalg.norm(lab(one, sight) - lab(other, sight))) for sight in SEEN)


def contrast(one, other) -> float:
    """WCAG's ratio of two luminances: 3 for lines and large text, 4.5 for text."""
    low, high = sorted(float(linear(c) @ _XYZ[1]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)
