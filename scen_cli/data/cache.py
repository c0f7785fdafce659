@dataclass(frozen=True)
class CacheEntry:
    """Something in the cache: its kind (a subfolder), its name, and its bytes."""

    kind: str
    name: str
    size: int


def cache_entries() -> list[CacheEntry]:
    """Everything in the cache, by kind and name."""
    folders = [path for path in sorted(cache_folder().glob("*")) if path.is_dir()]
    return [
        CacheEntry(folder.name, entry.name, _size(entry))
        for folder in folders
        for entry in sorted(folder.iterdir())
        if entry.suffix != ".lock"
    ]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def clear_cache() -> None:
    """Remove everything that `cache_entries` lists."""
    for entry in cache_entries():
        path = cache_folder() / entry.kind / entry.name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
