"""`StreamPool`: every conversation is as if it were alone."""

import pytest

MESSAGES = [[f"w{7 * c % 40} w{c}" + " w9" * (c % 5) + f" w{t}" for t in range(4)] for c in range(9)]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_conversations_are_as_if_they_were_alone(pool_of, alone, rows):
    pool = pool_of(rows)
    conversations = [pool.conversation(f"c{number}") for number in range(len(MESSAGES))]
    said = [[] for _ in MESSAGES]
    for turn in range(4):
        streams = [each.send(MESSAGES[number][turn]) for number, each in enumerate(conversations)]
        for number, stream in enumerate(streams):
            said[number].append("".join(stream))
            assert said[number][-1] == str(stream) and stream.finish_reason in ("stop", "length")
    assert said == [alone(messages) for messages in MESSAGES]
    numbers = pool.numbers
    assert numbers.turns_finished == 36 and numbers.rows_in_use == numbers.waiting == 0
