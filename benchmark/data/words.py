"""A list of English words, from wherever this machine has one."""

import importlib.util
from pathlib import Path

DICTIONARIES = [Path("/usr/share/dict") / name for name in ("web2", "words", "american-english", "british-english")]
CURE = (
    "run `python -m nltk.downloader words`, install a dictionary (Debian: wamerican), `pip install english-words`, or "
    "pass --words FILE"
)


def load_words(file: Path | None = None) -> tuple[frozenset[str], str]:
    """The lower-case words of a file with a word per line, or of the first source there is, and where they are from.

    The sources: the corpus `words` of NLTK, a system dictionary, the package english-words.

    Raises
    ------
    ValueError
        When there is none, or it is empty.
    """
    source, words = (str(file), _from_file(file)) if file else _first_source()
    words = frozenset(word.strip().lower() for word in words if word.strip())
    if not words:
        raise ValueError(f"the word list {source} is empty: {CURE}.")
    return words, source


def _first_source() -> tuple[str, list[str]]:
    if (words := _from_nltk()) is not None:
        return "NLTK's corpus `words`", words
    for dictionary in DICTIONARIES:
        if dictionary.is_file():
            return str(dictionary), _from_file(dictionary)
    if importlib.util.find_spec("english_words"):
        from english_words import get_english_words_set

        return "the package english-words (web2)", list(get_english_words_set(["web2"]))
    raise ValueError(f"there is no list of English words on this machine: {CURE}.")


def _from_nltk() -> list[str] | None:
    import nltk

    try:
        nltk.data.find("corpora/words")
    except LookupError:
        return None
    return nltk.corpus.words.words()


def _from_file(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
