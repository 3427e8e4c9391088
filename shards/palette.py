"""Colours of labels, predictions and plots. Readers with any kind of colour blindness tell them apart.

They are those of M. Okabe and K. Ito, "Color Universal Design", 2008, or darker ones of the same hue for text.
"""

Colour = tuple[int, int, int]

BLUE, SKY, ORANGE = (0, 114, 178), (86, 180, 233), (230, 159, 0)
VERMILION, GREEN, PURPLE, BLACK = (213, 94, 0), (0, 158, 115), (204, 121, 167), (0, 0, 0)

# Outlines on films: the label solid, the prediction dashed.
LABEL, PREDICTION = SKY, ORANGE
# Text on white, with a contrast of at least 4.5.
LABEL_TEXT, PREDICTION_TEXT = BLUE, (160, 82, 0)
# The chosen point of a plot.
MARK = VERMILION
# Lines of a plot, in this order.
LINES = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, BLACK)

TEXT, BACKGROUND = (225, 225, 225), 24


def css(colour: Colour) -> str:
    """Return a colour as CSS and matplotlib write it, such as #0072b2."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
