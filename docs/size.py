"""What fleetsim and what it stands on take on this disk, without extras: `python docs/size.py` in the environment that has it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement


def sizes(name: str, found: dict[str, int]) -> dict[str, int]:
    """Bytes by package, of this one and all that it needs; what Python compiles when it first runs is left out."""
    name = name.lower().replace("_", "-")
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return found
    files = [package.locate_file(file) for file in package.files or [] if file.suffix != ".pyc"]
    found[name] = sum(file.stat().st_size for file in files if file.exists())
    for text in package.requires or []:
        needed = Requirement(text)
        if needed.name.lower().replace("_", "-") not in found and (
            needed.marker is None or needed.marker.evaluate({"extra": ""})
        ):
            sizes(needed.name, found)
    return found


if __name__ == "__main__":
    table = sizes("fleetsim", {})
    for name, size in sorted(table.items(), key=lambda row: -row[1])[:10]:
        print(f"{name:20} {size / 1e6:7.1f} MB")
    print(f"{'all ' + str(len(table)):20} {sum(table.values()) / 1e6:7.1f} MB")
