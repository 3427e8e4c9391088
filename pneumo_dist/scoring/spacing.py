"""Which pixel spacings are believed: those by which a chest film has a possible width."""

# A chest film shows 25 to 50 cm. A width outside this range means that the spacing belongs to another grid.
NARROWEST_MM, WIDEST_MM = 250.0, 500.0


def is_plausible(columns: int, spacing_column: float) -> bool:
    """Return whether a film of these columns, each `spacing_column` mm wide, has the width of a chest film."""
    return NARROWEST_MM <= columns * spacing_column <= WIDEST_MM
