"""Numbers of channels that hardware likes."""


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, at least `divisor` and at least nine tenths of `channels`.

    The rounding that MobileNet, MNASNet and EfficientNet have from TensorFlow's models; torchvision's
    `_make_divisible`.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
