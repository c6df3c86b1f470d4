"""What a file holds, by its name and by its first bytes: text, rows, or something that is refused.

Whatever is not recognised as something else is text, so source code, Markdown and logs are read
under any suffix. What is refused is refused by name, with what to do about it: an archive that is
read as text trains on headers and padding without a sign of it.
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import NamedTuple

COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
JSON_LINES = (".jsonl", ".ndjson", ".jsonlines", ".json-lines")
TABLES = (".csv", ".tsv")
HEAD_BYTES = 1 << 16
"""How much of a file is looked at to tell what it holds."""


class Unreadable(NamedTuple):
    """A kind of file that is not read.

    Attributes:
        what: The kind, as a noun with its article.
        remedy: What to do, as a sentence.
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}, which is not read. {self.remedy}"


_UNPACK = "Unpack it and give the files inside, such as 'folder/**/*.txt'."
_RECOMPRESS = f"Decompress it, or compress it as one of {', '.join(COMPRESSED)}."
_EXTRACT = "Extract its text into a .txt or .jsonl file first."
_EXPORT = "Export the column with the text to .csv, .jsonl or .parquet."
_IDS = (
    "Token ids that are on disk already go to TokenDataModule; text goes into .txt, .jsonl, .csv "
    "or .parquet files."
)
_LEAVE_OUT = (
    "Leave it out, by a glob that names the suffixes of text such as 'folder/**/*.txt', or by "
    'errors="skip".'
)

# What, remedy, suffixes. Suffixes that text has as well (.dat, .key, .model, .nc, .obj, .ts) are
# not here: the content decides about them.
_GROUPS = (
    (
        "an archive",
        _UNPACK,
        ".tar .tgz .tbz .tbz2 .txz .tzst .zip .7z .rar .jar .war .whl .egg .apk .cab .iso .dmg "
        ".deb .rpm .cpio .warc",
    ),
    (
        "a file compressed in another way",
        _RECOMPRESS,
        ".z .lz .lz4 .lzma .lzo .br .snappy .sz .zlib .zstd .gzip",
    ),
    (
        "a formatted document",
        _EXTRACT,
        ".pdf .doc .docx .docm .odt .rtf .xls .xlsx .xlsm .xlsb .ods .ppt .pptx .odp .epub .mobi "
        ".azw .azw3 .djvu .pst",
    ),
    ("a database", _EXPORT, ".sqlite .sqlite3 .db .db3 .mdb .accdb .duckdb .lmdb .rocksdb"),
    (
        "a table in a binary format",
        _EXPORT,
        ".arrow .feather .ipc .orc .avro .h5 .hdf5 .hdf .msgpack .tfrecord .tfrecords .dta "
        ".sav .sas7bdat .rds .rdata .mat",
    ),
    (
        "a file of arrays, objects or weights",
        _IDS,
        ".bin .idx .npy .npz .pkl .pickle .joblib .pt .pth .ckpt .safetensors .onnx .gguf .ggml "
        ".tflite .mmap .memmap",
    ),
    (
        "an image",
        _LEAVE_OUT,
        ".png .jpg .jpeg .jpe .gif .bmp .tif .tiff .webp .ico .heic .heif .avif .psd .xcf .jp2",
    ),
    (
        "a recording",
        _LEAVE_OUT,
        ".mp3 .wav .flac .ogg .oga .opus .m4a .aac .wma .aiff .mid .midi .mp4 .m4v .mkv .avi .mov "
        ".webm .wmv .flv .mpg .mpeg .3gp",
    ),
    ("a font", _LEAVE_OUT, ".ttf .otf .ttc .woff .woff2 .eot"),
    (
        "a compiled program",
        _LEAVE_OUT,
        ".exe .dll .so .dylib .o .a .pyc .pyo .pyd .class .dex .wasm .beam .elc",
    ),
)
_BY_SUFFIX = {
    suffix: Unreadable(f"{what} ({suffix})", remedy)
    for what, remedy, suffixes in _GROUPS
    for suffix in suffixes.split()
}

# First bytes that no text has, at offset 0 if none is said.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive or an office document", _UNPACK),
    (b"PK\x05\x06", "a zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"!<arch>\n", "an archive of object files", _LEAVE_OUT),
    (b"\x1f\x8b\x08", "gzip-compressed data", "Give the file a name that ends in .gz."),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed data", "Give the file a name that ends in .zst."),
    (b"\xfd7zXZ\0", "xz-compressed data", "Give the file a name that ends in .xz."),
    (b"BZh91AY&SY", "bzip2-compressed data", "Give the file a name that ends in .bz2."),
    (b"\x04\x22\x4d\x18", "LZ4-compressed data", _RECOMPRESS),
    (b"\x1f\x9d", "a file compressed by `compress`", _RECOMPRESS),
    (b"%PDF-1.", "a PDF document", _EXTRACT),
    (b"%PDF-2.", "a PDF document", _EXTRACT),
    (b"{\\rtf1", "an RTF document", _EXTRACT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document", _EXTRACT),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT),
    (b"PAR1\x15", "a Parquet file", "Give the file a name that ends in .parquet."),
    (b"ARROW1\0\0", "an Arrow file", _EXPORT),
    (b"\xff\xff\xff\xff\x10\x00\x00\x00", "an Arrow stream", _EXPORT),
    (b"ORC\x0a\x03", "an ORC file", _EXPORT),
    (b"Obj\x01", "an Avro file", _EXPORT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", _IDS),
    (b"\x80\x02", "pickled objects", _IDS),
    (b"\x80\x03", "pickled objects", _IDS),
    (b"\x80\x04\x95", "pickled objects", _IDS),
    (b"\x80\x05\x95", "pickled objects", _IDS),
    (b"MMIDIDX\0\0", "an index of token ids", _IDS),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", _LEAVE_OUT),
    (b"\xff\xd8\xff", "a JPEG image", _LEAVE_OUT),
    (b"II*\0", "a TIFF image", _LEAVE_OUT),
    (b"MM\0*", "a TIFF image", _LEAVE_OUT),
    (b"OggS\0", "an Ogg recording", _LEAVE_OUT),
    (b"fLaC\0", "a FLAC recording", _LEAVE_OUT),
    (b"\x1aE\xdf\xa3", "a Matroska recording", _LEAVE_OUT),
    (b"\x7fELF", "a compiled program", _LEAVE_OUT),
    (b"\xca\xfe\xba\xbe", "a compiled program", _LEAVE_OUT),
    (b"\xcf\xfa\xed\xfe", "a compiled program", _LEAVE_OUT),
    (b"\0asm", "a compiled program", _LEAVE_OUT),
)
_TAR_MAGIC = slice(257, 262)
_UTF_32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Control characters but tab, line ends, backspace, form feed, vertical tab and escape.
_CONTROLS = bytes([*range(1, 8), *range(0x0E, 0x1B), *range(0x1C, 0x20), 0x7F])
_MANY = 0.3  # of a file that is valid UTF-8: text has single NULs at most
_SOME = 0.02  # of a file that is not
_FEW_BYTES = 16  # tell nothing


def layout_of(path: Path) -> str:
    """Return the suffix, in lower case, that says how a file is laid out; compression aside."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return os.path.splitext(name)[1]


def refused_by_name(path: Path) -> Unreadable | None:
    """Return what a file is if its suffix says that it is neither text nor rows."""
    return _BY_SUFFIX.get(layout_of(path))


def refused_by_content(head: bytes) -> Unreadable | None:
    """Return what a file is if its first bytes, decompressed, are no text.

    Text in another 8-bit encoding is none of its business: the reader names its first bad byte.

    Args:
        head: The first `HEAD_BYTES` bytes, or all of a shorter file.
    """
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic):
            return Unreadable(what, remedy)
    if head[_TAR_MAGIC] == b"ustar":
        return Unreadable("a tar archive", _UNPACK)
    return _other_unicode(head) or _binary(head)


def _other_unicode(head: bytes) -> Unreadable | None:
    """Recognise UTF-32 and UTF-16 by their mark, or by where ASCII has its zeros in them."""
    name = None
    if head.startswith(_UTF_32_MARKS):
        name = "UTF-32"
    elif head.startswith(_UTF_16_MARKS):
        name = "UTF-16"
    elif len(head) >= 16:
        half = len(head) // 2
        zeros = [head[parity::2].count(0) / half for parity in (0, 1)]
        if min(zeros) < 0.05 and max(zeros) > 0.7:
            name = f"UTF-16{'BE' if zeros[0] > zeros[1] else 'LE'}"
            other = head[zeros[0] > zeros[1] :: 2]
            if _share(other, _CONTROLS) > _SOME:  # 16-bit numbers, not characters
                return None
    if name is None:
        return None
    return Unreadable(
        f"text that looks like {name}", f"Convert it to UTF-8, as `iconv -f {name} -t UTF-8` does."
    )


def _binary(head: bytes) -> Unreadable | None:
    if not head:
        return None
    strange = _share(head, _CONTROLS + b"\0")
    is_utf8 = _is_utf8(head)
    if strange <= (_MANY if is_utf8 else _SOME) or (is_utf8 and len(head) < _FEW_BYTES):
        return None
    return Unreadable("binary data", f"{_LEAVE_OUT} {_IDS}")


def _share(content: bytes, characters: bytes) -> float:
    return 1 - len(content.translate(None, characters)) / max(1, len(content))


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.utf_8_decode(head, "strict", len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return True
