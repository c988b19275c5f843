"""Streams that ask questions about themselves: lines with a number to remember, and multiple-choice questions.

The first is the StreamEval of the StreamingLLM paper (arXiv 2309.17453, section 4.5), whose authors never released
it; the second is its streaming question answering (section 4.3). Lines have names of two words where the paper numbers
them: a model of 135M parameters finds "red lamp: 4821" again, but confuses line 117 with line 118.
"""

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

Encode = Callable[[str], list[int]]

ADJECTIVES = (
    "red blue green old new small large quiet loud bright dark cold warm heavy light round flat sharp soft wild "
    "golden silver wooden empty broken clean dirty early famous gentle happy hidden holy honest huge humble "
    "lonely lucky modern narrow noble plain proud public rapid rare royal rural sacred secret silent simple "
    "sleepy smooth solid steep strange sweet tall thick tiny urban young yellow"
)
NOUNS = (
    "river lamp chair bridge tower garden window mirror engine basket pencil hammer bottle carpet ladder candle "
    "rocket wagon kettle anchor apple barrel blanket bucket button cabin camera castle circle clock coin crown "
    "desk door drum farm fence flag forest fountain gate guitar harbor helmet house island jacket jar kitchen "
    "lake letter map market medal needle orchard painting piano pillow road saddle ship table violin"
)


@dataclass(frozen=True)
class Query:
    """One answer to be given within a stream.

    Attributes
    ----------
    start : int
        Index in the stream of the answer's first token.
    answer : tuple of int
        Its tokens. They stand in the stream, so what follows does not depend on what a model would have said.
    candidates : tuple of int or None
        The tokens to choose from; None: the whole vocabulary.
    distance_lines, distance_tokens : int
        How far back what is asked for stands; 0 where that has no meaning.
    """

    start: int
    answer: tuple[int, ...]
    candidates: tuple[int, ...] | None = None
    distance_lines: int = 0
    distance_tokens: int = 0


def line_stream(
    encode: Encode, num_tokens: int, distances: list[int], query_every: int = 10, seed: int = 0
) -> tuple[list[int], list[Query]]:
    """Lines such as "red lamp: 4821."; every `query_every` lines one query per distance, for a line so many lines back.

    No line is asked for twice, else the earlier answer could be copied: the queries of a round ask for lines of
    different remainders, so a distance is met exactly or exceeded by less than `query_every`. A query is the line
    itself once more. Names come back after all of them have been used, 4,096 lines later.

    Parameters
    ----------
    encode : callable
        Text to token ids.
    num_tokens : int
        Length of the stream.
    distances : list of int
        In lines; multiples of `query_every`, at most that many of them.

    Raises
    ------
    ValueError
        When the distances do not allow to ask for every line at most once.
    """
    _check_distances(distances, query_every)
    chance = random.Random(seed)
    names = list(itertools.product(ADJECTIVES.split(), NOUNS.split()))
    chance.shuffle(names)
    ids, queries, lines, places = encode("Below is a record of numbers to remember.\n"), [], [], []

    def say(line: tuple[str, list[int]]) -> int:
        """Append a line; returns where its number begins."""
        name, number = line
        ids.extend(encode(name))
        ids.extend([*number, *encode(".\n")])
        return len(ids) - len(encode(".\n")) - len(number)

    while len(ids) < num_tokens:
        count = len(lines)
        name = " ".join(names[count % len(names)])
        lines.append((f"{name}:", encode(f" {chance.randrange(10**4):04}")))
        places.append(say(lines[count]))
        for offset, distance in enumerate(distances if (count + 1) % query_every == 0 else []):
            asked = count - distance - offset
            if asked >= 0:
                start = say(lines[asked])
                queries.append(Query(start, tuple(lines[asked][1]), None, count - asked, start - places[asked]))
    kept = [query for query in queries if query.start + len(query.answer) <= num_tokens]
    return ids[:num_tokens], kept


def _check_distances(distances: list[int], query_every: int) -> None:
    if len(distances) > query_every or len(set(distances)) < len(distances):
        raise ValueError(f"--distances: at most --query_every {query_every} different ones, not {distances}.")
    if wrong := [distance for distance in distances if distance < query_every or distance % query_every]:
        raise ValueError(f"--distances {wrong[0]} must be a multiple of --query_every {query_every}.")


def question_stream(encode: Encode, num_tokens: int, rows: Iterable[dict]) -> tuple[list[int], list[Query]]:
    """Multiple-choice questions in the form of ARC, each followed by the label of its right answer.

    Parameters
    ----------
    rows : iterable of dict
        With `question`, `choices` (`text` and `label`, lists of the same length) and `answerKey`.

    Raises
    ------
    ValueError
        When a row has another form, or its labels do not differ in their first token.
    """
    ids, queries = [], []
    for row in rows:
        question, texts, labels, answer = _read_question(row)
        ids_of_labels = {label: tuple(encode(f" {label}")) for label in labels}
        candidates = tuple(tokens[0] for tokens in ids_of_labels.values())
        if len(set(candidates)) < len(candidates):
            raise ValueError(f"the labels {labels} of {question!r} begin with the same token; use A, B, C, D.")
        options = "".join(f"{label}. {text}\n" for label, text in zip(labels, texts, strict=True))
        opening = encode(f"Question: {question}\n{options}Answer:")
        if len(ids) + len(opening) + 1 > num_tokens:
            break
        ids += opening
        queries.append(Query(len(ids), ids_of_labels[answer][:1], candidates))
        ids += [*ids_of_labels[answer], *encode("\n\n")]
    return ids[:num_tokens], queries


def _read_question(row: dict) -> tuple[str, list[str], list[str], str]:
    try:
        question, answer = row["question"], row["answerKey"]
        texts, labels = row["choices"]["text"], row["choices"]["label"]
    except (KeyError, TypeError, IndexError):
        raise ValueError(
            f"a question has {', '.join(row)}; needed are question, choices (text and label) and answerKey, as in ARC."
        ) from None
    if answer not in labels or len(texts) != len(labels):
        raise ValueError(f"answerKey {answer!r} of {question!r} is not one of its labels {labels}.")
    return question, texts, labels, answer


def judge(queries: list[Query], chunks: Iterable[tuple[int, torch.Tensor]]) -> list[tuple[bool, float]]:
    """Whether each answer is the likeliest one, token for token, and its mean NLL in nats.

    Parameters
    ----------
    queries : list of Query
    chunks : iterable of (int, Tensor [tokens, vocabulary])
        The stream's logits, chunk by chunk, and where each chunk begins.
    """
    right, nll = [True] * len(queries), [0.0] * len(queries)
    asked = [(query.start - 1 + i, n, i) for n, query in enumerate(queries) for i in range(len(query.answer))]
    for begin, logits in chunks:
        for position, n, i in asked:
            if begin <= position < begin + len(logits):
                scores, gold = logits[position - begin].float(), queries[n].answer[i]
                nll[n] += (scores.logsumexp(-1) - scores[gold]).item() / len(queries[n].answer)
                rivals = scores if queries[n].candidates is None else scores[list(queries[n].candidates)]
                right[n] &= bool(scores[gold] >= rivals.max())
    return list(zip(right, nll, strict=True))
