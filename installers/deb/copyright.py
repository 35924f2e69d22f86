"""Write the package's copyright file (DEP-5) from the libraries' own metadata.

    python copyright.py ENVIRONMENT > copyright

ENVIRONMENT holds lib/*/site-packages. Every library there must name its licence and carry its
text; one that does not ends the build, because then nobody knows whether it may be passed on.
A licence that every Debian system has in /usr/share/common-licenses is named, not repeated.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Final

_COMMON: Final = {  # how a text in common-licenses begins
    "Apache-2.0": r"Apache License\s+Version 2\.0, January 2004",
    "GPL-3": r"GNU GENERAL PUBLIC LICENSE\s+Version 3, 29 June 2007",
    "LGPL-3": r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3, 29 June 2007",
    "LGPL-2.1": r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 2\.1, February 1999",
}
_INNER: Final = re.compile(  # a whole licence inside another text
    r"Apache License\s+Version 2\.0, January 2004.*?limitations under the License\.", re.DOTALL
)
_SHORT: Final = {
    "MIT": "Expat",
    "MIT License": "Expat",
    "ISC License": "ISC",
    "LGPLv3": "LGPL-3",
    "LGPLv2+": "LGPL-2.1+",
}
_LICENCE_FILE: Final = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
_HOLDER: Final = re.compile(r"^\W*(?:copyright|\(c\)|©).*\d{4}.*$", re.IGNORECASE | re.MULTILINE)
_OURS: Final = "stoker"
_HEAD: Final = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Stoker
Source: https://github.com/stoker-ai/stoker
Comment: Stoker's own code is in stoker, stoker_tray and stoker_service. The other folders hold the
 libraries that installers/requirements.lock and installers/build.lock pin, as their authors publish
 them, without debugging symbols.

Files: *
Copyright: 2026 the developers of Stoker
License: Apache-2.0

License: Apache-2.0
 The full text is in /usr/share/common-licenses/Apache-2.0.
"""
_TAIL: Final = """\
Files: usr/lib/stoker/lib/*/site-packages/xllamacpp/*.so
Copyright: 2024 Shakeeb Alireza
 2023-2026 The ggml authors
License: Expat
Comment: It is compiled with llama.cpp, whose licence has the same text as that of xllamacpp above.
"""


@dataclass(frozen=True)
class Library:
    """What one .dist-info folder says."""

    name: str
    licence: str
    folders: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def holders(self) -> tuple[str, ...]:
        found = (match.strip() for text in self.texts for match in _HOLDER.findall(text))
        return tuple(dict.fromkeys(found)) or (f"the authors of {self.name}",)


def read(info: Path) -> Library:
    """The library of a .dist-info folder. Raises ValueError when its licence is not told."""
    metadata = Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
    name = str(metadata["Name"])
    files = sorted(path for path in info.rglob("*") if path.is_file() and _is_licence(path, info))
    texts = tuple(path.read_text(encoding="utf-8", errors="replace") for path in files)
    licence = _licence_of(metadata)
    if not licence or not texts:
        msg = f"{name} does not say what its licence is"
        raise ValueError(msg)
    record = (info / "RECORD").read_text(encoding="utf-8")
    tops = {line.split("/")[0].split(",")[0] for line in record.splitlines()}
    folders = tuple(sorted(top for top in tops if not top.endswith(".dist-info") and top != ".."))
    return Library(name=name, licence=licence, folders=folders, texts=texts)


def _is_licence(path: Path, info: Path) -> bool:
    inside = path.relative_to(info)
    return inside.parts[0] == "licenses" or _LICENCE_FILE.match(inside.name) is not None


def _licence_of(metadata: Message) -> str:
    """Its licence in DEP-5's short names; "" when none is told."""
    told = str(metadata["License-Expression"] or metadata["License"] or "")
    if not told or "\n" in told:  # older metadata may hold the whole text there
        classifiers = metadata.get_all("Classifier") or []
        found = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ")]
        told = " OR ".join(found)
    words = re.split(r" (AND|OR) ", told.strip())
    words = [word.lower() if word in {"AND", "OR"} else _SHORT.get(word, word) for word in words]
    return " ".join(word.replace(" ", "-") for word in words)


def paragraph(library: Library) -> str:
    """Its paragraph: which files, whose, and under which terms."""
    place = "usr/lib/stoker/lib/*/site-packages"
    files = [f"{place}/{top}{'' if top.endswith('.py') else '/*'}" for top in library.folders]
    texts = [_text(text) for text in library.texts]
    lines = [
        "Files: " + "\n ".join(files),
        "Copyright: " + "\n ".join(library.holders),
        f"License: {library.licence}",
        "\n .\n".join(dict.fromkeys(texts)),
    ]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """A licence's text as a field's value, or where the system has it."""
    where = "The full text is in /usr/share/common-licenses"
    for name, begin in _COMMON.items():
        if re.search(begin, text[:400]):
            return f" {where}/{name}."
    lines = _INNER.sub(f"{where}/Apache-2.0.", text).strip().splitlines()
    return "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in lines)


def main(environment: Path) -> None:
    found = {}
    for info in sorted(environment.glob("lib/*/site-packages/*.dist-info")):
        library = read(info)
        if library.name != _OURS:
            found[library.name.lower()] = library
    print(_HEAD)  # noqa: T201
    print(*(paragraph(found[name]) for name in sorted(found)), _TAIL, sep="\n", end="")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
