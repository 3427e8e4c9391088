"""The templates of the report's pages."""

import jinja2


def templates() -> jinja2.Environment:
    """Return the environment that renders the pages of this folder. Every text is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pneumo_dist.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
