"""What tests know of a picture's file; what is in the picture they see in the figure that it was drawn from."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot
from matplotlib.figure import Figure


def is_picture_of(path: Path, figure: Figure) -> bool:
    """Whether the file is a PNG of the figure's proportions, and not blank."""
    picture = pyplot.imread(path)
    height, width = picture.shape[:2]
    inches = figure.get_size_inches()
    return abs(width / inches[0] - height / inches[1]) < 2 and bool(picture[..., :3].min() < 0.5)
