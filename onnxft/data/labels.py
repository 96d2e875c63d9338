"""Names of classes and their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnxft.errors import DataError, near
from onnxft.manifest import Manifest


def class_names(found: Iterable[str], given: Sequence[str], manifest: Manifest, source: str) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers.

    Args:
        found: names in the data.
        given: names that the user gives; they go before those of the manifest.
        manifest: its classes are taken where none are given; without either the sorted names of the data.
        source: for messages.

    Raises:
        DataError: a name in the data is none of them, or there are more or fewer names than classes.
    """
    names = tuple(given) or manifest.classes
    wanted, unique = manifest.loss.num_classes, sorted(set(found))
    if not names:
        if wanted is not None and len(unique) != wanted:
            raise DataError(
                f"{source} has {len(unique)} classes ({listed(unique)}), the model {wanted}: which number is whose is "
                "not known. Give the names of all in order with --classes, or export the model for as many classes."
            )
        return tuple(unique)
    if len(set(names)) != len(names):
        raise DataError(f"classes has '{next(n for n in names if names.count(n) > 1)}' twice.")
    if wanted is not None and len(names) != wanted:
        raise DataError(f"classes has {len(names)} names ({listed(names)}), the model {wanted} classes.")
    for name in unique:
        if name not in names:
            raise DataError(f"{source} has the class '{name}', which is none of the model's.{near(name, names)}")
    return names


def listed(names: Sequence[str]) -> str:
    """The first names, and how many there are besides."""
    shown = ", ".join(f"'{n}'" for n in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
