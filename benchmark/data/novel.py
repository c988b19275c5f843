"""Fetch a real novel without a text hub: Jane Austen's, from the Debian package r-cran-janeaustenr (public domain).

The script downloads the package with apt-get, verifies and unpacks it; it installs nothing. The text goes to
benchmark/texts/<title>.txt, and that path is printed on stdout. A second run finds the file and downloads nothing.
Where there is no apt-get, any long text of your own serves as well: give its file to perplexity.py as --dataset_name.
"""

import hashlib
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rdata

from benchmark.lib.common import build_parser, fail
from benchmark.lib.texts import TEXTS, write_whole

PACKAGE = "r-cran-janeaustenr"
LIBRARY = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
# Title -> first line and SHA-256 of the text: the figures in the README were made with exactly these bytes.
NOVELS = {
    "emma": ("EMMA", "dd08b340a56ad4a0a00718d5682528a5a5886ae0aef91c9e0fa528074fa64b75"),
}


def download(folder: Path) -> bytes:
    """Download and unpack the package in `folder`; return the file that holds its data."""
    subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package.name, "."], cwd=folder, check=True, capture_output=True, text=True)
    return (folder / LIBRARY).read_bytes()


def objects(data: bytes) -> Iterator[bytes]:
    """The serialised objects of one of R's lazy-load files: each is its size (4 bytes) and a zlib stream."""
    while data:
        block = zlib.decompressobj()
        yield block.decompress(data[4:])
        data = block.unused_data


def character_vector(data: bytes) -> list[str]:
    """Read a character vector as R serialises it; ValueError when it is something else."""
    try:
        vector = rdata.conversion.convert(rdata.parser.parse_data(data, extension=".rds"), default_encoding="utf-8")
    except Exception as error:  # rdata has no error of its own for what is no R file
        raise ValueError(f"an object is not a character vector in R's format: {error}") from error
    if not isinstance(vector, np.ndarray) or vector.dtype.kind != "U":
        raise ValueError(f"an object is a {type(vector).__name__}, not a character vector")
    return vector.tolist()


def fetch_novel(title: str, output: Path) -> Path:
    """Make sure that the novel is in `output`; returns its path."""
    if output.exists():
        return output
    first_line, digest = NOVELS[title]
    with tempfile.TemporaryDirectory() as folder:
        data = download(Path(folder))
    lines = next((lines for lines in map(character_vector, objects(data)) if lines[0] == first_line), None)
    if lines is None:
        raise ValueError(f"{PACKAGE} holds no text that begins with {first_line!r}")
    text = "\n".join(lines).encode()
    if hashlib.sha256(text).hexdigest() != digest:
        raise ValueError(f"the text of {title!r} in {PACKAGE} is not the one the figures were made with")
    write_whole(output, text)
    return output


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--title", choices=tuple(NOVELS), default="emma", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=None, help="(default: benchmark/texts/<title>.txt)")
    args = parser.parse_args()
    try:
        print(fetch_novel(args.title, args.output or TEXTS / f"{args.title}.txt"))
    except subprocess.CalledProcessError as error:
        fail(parser, f"apt-get or dpkg-deb failed, run `apt-get update` first: {(error.stderr or '').strip()}")
    except FileNotFoundError as error:
        fail(parser, f"{error.filename} is needed to fetch {PACKAGE}; give perplexity.py a text of your own instead.")
    except ValueError as error:
        fail(parser, f"{error}; remove what is cached of the package, or choose a text of your own.")


if __name__ == "__main__":
    main()
