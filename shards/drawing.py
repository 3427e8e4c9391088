"""The colours of drawings, RGB."""

LABEL_COLOUR, PREDICTION_COLOUR = (80, 220, 80), (235, 80, 60)
