"""Every family of chat templates: what is fed is what the template writes, and answers are read as they are meant."""

import pytest

from attention_sinks.chat.template import ChatTemplate
from attention_sinks.chat.template import Said as Ended
from support.chat_families import BY_NAME, CALL, FAMILIES, HELLO, HERMES_CALL, PARSES_PYTHON, RESULT, Said, weather
from support.chat_table import updated
from support.helpers import refused
from support.paths import ROOT
from support.told_chat import SYSTEM, ToldChat

pytestmark = pytest.mark.each_release

SMALL, LARGE = 16, 2000
WAYS = [("keep", SMALL), ("forget", SMALL), ("forget", LARGE)]
HELLO_OF_GPT_OSS = BY_NAME["gpt_oss"].thinking


def names(condition=lambda family: True):
    return [family.name for family in FAMILIES if condition(family)]


def thinks(family):
    return family.thinking is not None


def calls(family):
    return family.calling is not None


def needs_python(name):
    if name == "lfm2" and not PARSES_PYTHON:
        pytest.skip("this release of Transformers does not parse calls that are written as Python")


def with_thoughts(condition=lambda family: True):
    """Return names with "keep" or "forget"; a model that does not think has nothing to forget."""
    return [
        (family.name, thoughts)
        for family in FAMILIES
        if condition(family)
        for thoughts in (("keep", "forget") if thinks(family) else ("keep",))
    ]


def assert_read(told, said, finish_reason="stop"):
    """The answer's parts are those of what was said; white space around the text is kept."""
    answer = told.answer
    assert (answer.text.strip(), answer.thoughts, len(answer.tool_calls)) == (said.text, said.thoughts, said.calls)
    assert "".join(piece for piece in told.pieces if not piece.is_thought) == answer.text
    assert "".join(piece for piece in told.pieces if piece.is_thought) == said.thoughts
    assert answer.finish_reason == finish_reason
    assert answer.usage.tokens_written == len(told.said)


def assert_turn(told, message, said, **options):
    told.ask(message, said, **options)
    assert_read(told, said)
    told.assert_streamed()


# ---- turns


@pytest.mark.parametrize(
    ("name", "thoughts", "window"),
    [(*each, window) for each in with_thoughts() for thoughts, window in WAYS if thoughts == each[1]],
)
def test_turns_are_what_the_template_writes(name, thoughts, window):
    family = BY_NAME[name]
    told = ToldChat(family, window, thoughts=thoughts)
    answers = [family.plain, family.thinking or family.plain, family.plain]
    for question, said in zip(["Hello!", "Is it easy?", "Thank you."], answers, strict=True):
        assert_turn(told, question, said)
        if thoughts == "keep" and (not thinks(family) or family.keeps_thoughts) and family.system != "in every message":
            told.assert_is_the_oracle()
    assert told.chat.cache.tokens_seen.item() > told.chat.cache.tokens_cached.item() or window == LARGE


@pytest.mark.parametrize(("name", "thoughts"), with_thoughts(calls))
def test_a_call_of_a_tool_its_result_and_the_answer(name, thoughts):
    needs_python(name)
    family = BY_NAME[name]
    told = ToldChat(family, tools=True, thoughts=thoughts)
    assert_turn(told, "Hello!", family.plain)
    assert_turn(told, "How is the weather in Rome?", family.calling)
    function = told.answer.tool_calls[0]["function"]
    assert function["name"] == "weather"
    assert_turn(told, family.result(weather(**function["arguments"])), family.thinking or family.plain)
    assert_turn(told, "And in general?", family.plain)


@pytest.mark.parametrize("place", [0, 10, -1])
def test_another_stream_is_told_apart(place):
    told = ToldChat(BY_NAME["qwen3"], LARGE)
    told.ask("Hello!", HELLO)
    told.prompt[place] += 1
    with pytest.raises(AssertionError, match="differs by"):
        told.assert_streamed()


# ---- answers that are cut


@pytest.mark.parametrize(("name", "thoughts"), with_thoughts())
def test_an_answer_that_is_cut_is_closed_by_the_next_turn(name, thoughts):
    family = BY_NAME[name]
    told = ToldChat(family, LARGE, thoughts=thoughts)
    said = family.thinking or family.plain
    whole = len(told.ids(said.raw))
    for cut in range(1, whole + 1, max(whole // 3, 1)):
        answer = told.ask("Hello!", said, cut=cut)
        assert answer.finish_reason == "length" and said.text.startswith(answer.text.strip())
        assert said.thoughts.startswith(answer.thoughts.strip())
        told.assert_streamed()
    assert_turn(told, "Go on.", family.plain)


@pytest.mark.parametrize("name", names(lambda family: family.closes))
def test_a_closing_of_several_parts_is_written_once(name):
    family = BY_NAME[name]
    told = ToldChat(family, LARGE)
    assert_turn(told, "Hello!", family.plain, closes="")  # the model says only the last part
    assert_turn(told, "Hello!", family.plain)  # all of it
    assert_turn(told, "Hello!", family.plain)


# ---- keywords of templates


@pytest.mark.parametrize("thoughts", ["keep", "forget"])
@pytest.mark.parametrize("name", names(lambda family: family.options))
def test_thinking_can_be_turned_off_for_the_chat_and_for_a_turn(name, thoughts):
    family = BY_NAME[name]
    unthinking = Said("\n" * (name == "glm") + "Hello there!", "Hello there!")
    told = ToldChat(family, LARGE, thoughts=thoughts)
    assert_turn(told, "Hello!", family.thinking)
    assert_turn(told, "Hello!", unthinking, chat_template_kwargs=family.options)
    assert_turn(told, "Hello!", family.thinking)
    told = ToldChat(family, LARGE, thoughts=thoughts, chat_template_kwargs=family.options)
    for _ in range(2):
        assert_turn(told, "Hello!", unthinking)


def test_how_hard_a_model_thinks_is_said_once(messages):
    told = ToldChat(BY_NAME["gpt_oss"], chat_template_kwargs={"reasoning_effort": "high"})
    assert "Reasoning: high" in told.chat.template.first_turn("Hello!").text
    assert_turn(told, "Hello!", HELLO_OF_GPT_OSS)
    assert not messages.about("has been read")
    told.ask("Hello!", HELLO_OF_GPT_OSS, chat_template_kwargs={"reasoning_effort": "low"})
    assert len(messages.about("has been read")) == 1


HELLO_OF_GPT_OSS = BY_NAME["gpt_oss"].thinking


def test_a_keyword_that_a_template_does_not_read_is_warned_of_once(messages):
    told = ToldChat(BY_NAME["qwen3"], chat_template_kwargs={"thinking": False})
    for _ in range(2):
        told.ask("Hello!", HELLO, chat_template_kwargs={"thinking": False})
    assert len(messages.about("'thinking'", "leave it out")) == 1


# ---- tokens


@pytest.mark.parametrize("name", names())
def test_messages_cannot_write_special_tokens(name):
    family = BY_NAME[name]
    template, control = template_of(family), [*family.special, *family.added, family.eos]
    tokenizer = family.tokenizer()
    numbers = set(tokenizer.convert_tokens_to_ids(control))
    for prompt in (template.first_turn, template.next_turn):
        harmless, hostile = "I say nothing at all.", f"I say {''.join(control)} and {' '.join(control)}."
        read = [[token for token in prompt(text).ids if token in numbers] for text in (harmless, hostile)]
        assert read[0] == read[1] and read[0]
        assert tokenizer.decode(prompt(hostile).ids) == prompt(hostile).text
        assert hostile in prompt(hostile).text


@pytest.mark.parametrize("name", names(calls))
def test_results_of_tools_cannot_write_special_tokens(name):
    family = BY_NAME[name]
    template, numbers = (
        template_of(family),
        set(family.tokenizer().convert_tokens_to_ids([*family.special, family.eos])),
    )
    said = Ended(family.calling.raw[-20:], True, ({"id": "call00000", **CALL},))
    ids = [template.next_turn(family.result(text), said).ids for text in (RESULT, f"sunny{family.eos}")]
    assert len({tuple(token for token in each if token in numbers) for each in ids}) == 1


TEXTS = [
    "Hello!",
    "",
    "  two spaces  and\n\n a line\n",
    "Ça va très bien 🙂 数字",
    "def f(x):\n\treturn x[0] < 1",
    "a" * 99,
]


@pytest.mark.parametrize("name", names())
def test_a_first_turn_is_what_the_tokenizer_makes_of_the_template(name):
    told = ToldChat(BY_NAME[name])
    for text in TEXTS:
        whole = told.rendered([*told.history, {"role": "user", "content": text}])
        assert told.chat.template.first_turn(text).ids == whole
        bos = told.tokenizer.bos_token_id
        if bos is not None and told.tokenizer.bos_token in told.family.template:
            assert whole.count(bos) == 1 + (name == "seed_oss") * 2


def template_of(family, **options):
    options.setdefault("tools", [weather] if family.calling else None)
    return ChatTemplate(family.tokenizer(), SYSTEM if family.system else None, **options)


@pytest.mark.parametrize("tools", [False, True])
def test_a_special_token_that_a_model_says_is_no_text(tools):
    told = ToldChat(BY_NAME["chatml"], tools=tools)
    assert told.ask("Hello!", Said("Hello<|im_start|> there!")).text == "Hello there!"


# ---- tools


@pytest.mark.parametrize("name", names(calls))
def test_a_call_that_cannot_be_parsed_is_text(name):
    """The answer breaks off in its call, and nothing of it is lost."""
    family = BY_NAME[name]
    told = ToldChat(family, LARGE, tools=True)
    raw = family.calling.raw[: family.calling.raw.index("Rome") + 2]
    answer = told.ask("How is the weather?", Said(raw, calls=1))
    assert answer.tool_calls == [] and "Ro" in answer.text and "weather" in answer.text
    assert answer.thoughts == family.calling.thoughts
    assert "".join(told.pieces) == answer.thoughts + answer.text


@pytest.mark.parametrize("name", names(calls))
def test_without_tools_a_call_is_text(name):
    told = ToldChat(BY_NAME[name], LARGE)
    answer = told.ask("How is the weather?", BY_NAME[name].calling)
    assert answer.tool_calls == [] and "weather" in answer.text and "Rome" in answer.text


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_two_calls_and_their_results(name):
    told = ToldChat(BY_NAME[name], LARGE, tools=True)
    told.ask("Hello!", Said(f"{HERMES_CALL}\n{HERMES_CALL}", calls=2))
    assert told.answer.tool_calls == [{**CALL, "id": f"call0000{index}"} for index in range(2)]
    results = [told.family.result(), told.family.result("again")]
    read = told.chat.template.next_turn(results, Ended("</tool_call>", True, tuple(told.answer.tool_calls))).ids
    assert [*told.prompt, *told.said, *read] == told.rendered([*told.history, *results])


@pytest.mark.parametrize("name", names(lambda family: not family.calling))
def test_a_template_that_ignores_tools_is_refused(name):
    refused(ValueError, lambda: ToldChat(BY_NAME[name], tools=True), "tools", "ignores them")


def test_a_template_that_needs_tools_is_refused_without():
    family = BY_NAME["llama3"]
    needs = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + family.tokenizer().chat_template
    refused(ValueError, lambda: template_of(family, chat_template=needs, tools=None), "chat template", "NoneType")
    assert "weather" in template_of(family, chat_template=needs).first_turn("Hello!").text


# ---- roles


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("gemma", "tool"),
        ("llama2", "developer"),
        ("deepseek_r1", "developer"),
        ("qwen3_5", "critic"),
        ("glm", "critic"),
    ],
)
def test_a_role_that_the_template_has_nothing_for_is_refused(name, role):
    told = ToldChat(BY_NAME[name])
    for _ in range(2):
        refused(ValueError, lambda: told.chat.send({"role": role, "content": "Look!"}), "chat template")
        assert_turn(told, "Hello!", BY_NAME[name].plain)


def test_a_system_prompt_where_there_is_none_is_refused():
    refused(ValueError, lambda: ChatTemplate(BY_NAME["gemma"].tokenizer(), SYSTEM), "system", "leave system out")


def test_a_system_prompt_in_every_message_is_warned_of_once(messages):
    told = ToldChat(BY_NAME["system_in_the_last_message"])
    for _ in range(3):
        assert_turn(told, "Hello!", HELLO)
    assert len(messages.about("repeats the system prompt")) == 1


# ---- the page


def test_the_page_says_what_works():
    needs_python("lfm2")
    page = (ROOT / "docs" / "chat-templates.md").read_text(encoding="utf-8")
    assert updated(page) == page, "run PYTHONPATH=tests python -m support.chat_table docs/chat-templates.md"
