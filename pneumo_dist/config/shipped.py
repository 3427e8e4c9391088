"""Configs that come with the package, found by name."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped_configs() -> dict[str, Path]:
    """Return the path of each shipped experiment and ensemble by its name, such as `seunet`, in order of the names.

    An installed wheel has copies in `pneumo_dist/configs`. A checkout has only `configs/`.
    """
    copies = _PACKAGE / "configs"
    folder = copies if copies.is_dir() else _PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"), key=lambda path: path.stem)}
