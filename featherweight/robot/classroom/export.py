"""What a class leaves behind, in one archive: leader board, data sets and logs by student; no key and no token."""

import zipfile
from pathlib import Path

from featherweight.errors import ConfigError
from featherweight.robot.classroom.board import Board


def export_class(folder: str | Path, out: str | Path) -> list[str]:
    """Write the archive of a class; return the names of what is in it.

    Args:
        folder: of the room.
        out: a new file.
    Raises:
        ConfigError: if the folder is not one of a room, the file is there already, or it cannot be written.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / "relay.json").exists():
        raise ConfigError(
            f"fw robot class export: class={folder} is no folder of a room; expected relay.json. Name the class."
        )
    try:
        with zipfile.ZipFile(out, "x", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("board.csv", Board(folder / "board.json").to_csv())
            for path in sorted((folder / "students").rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    archive.write(path, path.relative_to(folder))
            return archive.namelist()
    except FileExistsError as error:
        raise ConfigError(
            f"fw robot class export: out={out} is there already; expected a new file. Choose another name."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"fw robot class export: out={out} cannot be written ({error}); expected a file. Choose another place."
        ) from error
