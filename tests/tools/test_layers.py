"""Lower layers never import higher ones, and each library is known to one layer (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .project import PROJECT, label

# From the lowest to the highest.
LAYERS = ("crypto", "tpm", "keyslots", "vault", "index", "fs", "check", "mount", "practice", "cli")

# What keeps a layer replaceable: who alone may know a library.
LIBRARIES = {
    "pyfuse3": {"mount"},
    "trio": {"mount"},
    "lmdb": {"index"},
    "pydicom": {"practice"},
    "_argon2_cffi_bindings": {"crypto"},
    "argon2": {"crypto"},
    "tpm2_pytss": {"tpm"},
    "click": {"cli"},
    "segno": {"cli"},
    "rich": {"cli"},
}

PACKAGE = PROJECT / "cryptfs"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def imports(source: str, package: str) -> set[str]:
    """The absolute names of all modules that a module of `package` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from cryptfs import vault` imports a module, `from cryptfs.vault import Vault` a name of one.
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> str:
    """The layer of `cryptfs.LAYER.…`; what every layer may use (cryptfs.errors) is a name of its own."""
    return name.split(".")[1] if name.startswith("cryptfs.") else ""


def imports_of(path: Path) -> set[str]:
    package = ".".join(path.parent.relative_to(PROJECT).parts)
    return imports(path.read_text(), package)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import trio.lowlevel", {"trio.lowlevel"}),
        ("from cryptfs import vault", {"cryptfs.vault"}),
        ("from cryptfs.vault.names import NameCipher", {"cryptfs.vault.names.NameCipher"}),
        ("from . import types", {"cryptfs.fs.types"}),
        ("from .types import Attr", {"cryptfs.fs.types.Attr"}),
        ("from ..mount import daemon", {"cryptfs.mount.daemon"}),
        ("def f():\n    import lmdb", {"lmdb"}),
        ("if TYPE_CHECKING:\n    from cryptfs.cli import main", {"cryptfs.cli.main"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: set[str]) -> None:
    assert imports(source, "cryptfs.fs") == expected


def test_every_package_has_its_place() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages <= set(LAYERS), "add the new package to LAYERS and to docs/architecture.md"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_imports_only_go_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        allowed = {*LAYERS, "errors"} if parts[0] == "__main__.py" else set()
    else:
        allowed = {*LAYERS[: LAYERS.index(parts[0]) + 1], "errors", "__version__"}
    higher = {name for name in imports_of(path) if layer(name)} - {
        name for name in imports_of(path) if layer(name) in allowed
    }
    assert not higher, f"{label(path)} may import only {sorted(allowed)}"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_each_library_is_known_to_one_layer(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0]
    strangers = {name for name in imports_of(path) if own not in LIBRARIES.get(name.partition(".")[0], {own})}
    assert not strangers, f"{label(path)} knows a library that is another layer's"
