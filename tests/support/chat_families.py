"""One row for each family of chat templates, with what its models say. The templates are written for these tests."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers.utils.chat_parsing.content_parsers import CONTENT_PARSERS

from support.toy_tokenizers import merging_tokenizer

PARSES_PYTHON = "python-call-list" in CONTENT_PARSERS
"""Whether this release of Transformers parses calls that are written as Python, those of LFM2."""

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
RESULT = "sunny in Rome"


def weather(city: str) -> str:
    """
    Look up the weather.

    Args:
        city: The name of the city.
    """
    return f"sunny in {city}"


@dataclass(frozen=True)
class Said:
    """What a model says, without what ends it, and what a chat should find in it."""

    raw: str
    text: str = ""
    thoughts: str = ""
    calls: int = 0


@dataclass(frozen=True)
class Family:
    """A family of chat templates.

    Attributes
    ----------
    name, models : str
        Its name here, and models of it.
    template : str
        A Jinja template in the manner of the family. Line breaks in it and the spaces around them are removed.
    special, added : tuple of str
        Its special tokens, and tokens that the tokenizer does not call special.
    eos, bos : str
        The tokens that the tokenizer names.
    between : str
        From the end of an answer to the beginning of the next one, around "{}", a user's message.
    plain, thinking, calling : Said
        What its models say: an answer, one after thoughts, and a call of `weather`.
    results : str
        Like `between`, around the result of the call.
    closes : str
        What a model says itself of the closing, before the token that ends its answer.
    ends, call_end : str
        Tokens that end an answer and a call, where they are not `eos`.
    system : str or None
        Where the system prompt stands; None where there is none.
    keeps_thoughts : bool
        Whether histories have the thoughts.
    options : dict
        A keyword for the template,
    opening : str
        and what then opens an answer.
    role : str
        The role of a result.
    """

    name: str
    models: str
    template: str
    special: tuple[str, ...]
    eos: str
    between: str
    plain: Said
    added: tuple[str, ...] = ()
    bos: str | None = None
    thinking: Said | None = None
    calling: Said | None = None
    results: str = ""
    closes: str = ""
    ends: str | None = None
    call_end: str | None = None
    system: str | None = "at the beginning"
    keeps_thoughts: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    opening: str | None = None
    role: str = "tool"

    @property
    def end(self) -> str:
        return self.ends or self.eos

    def tokenizer(self):
        """Return a tokenizer that can write any text, with the template and the tokens of the family."""
        return _tokenizer(self.name)

    def result(self, content=RESULT):
        """Return the result of the call as a message."""
        return {"role": self.role, "name": "weather", "tool_call_id": "call00000", "content": content}


@cache
def _tokenizer(name):
    family = BY_NAME[name]
    tokenizer = merging_tokenizer(_corpus(), eos_token=family.eos, bos_token=family.bos)
    for tokens, special in ((family.special, True), (family.added, False)):
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens], special)
    if family.bos:  # what encodes a text begins with it, as in many real tokenizers
        start = {"id": "BOS", "ids": [tokenizer.bos_token_id], "tokens": [family.bos]}
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("BOS $A", None, [start])
    tokenizer.chat_template = "".join(line.strip() for line in family.template.splitlines())
    return tokenizer


def _corpus():
    """Return texts of which the tokens are learnt: often what is said, so that answers have few tokens."""
    said = [each.raw for family in FAMILIES for each in (family.plain, family.thinking, family.calling) if each]
    return tuple(said * 20 + [family.template for family in FAMILIES])


# ---- the parts that several families share

CHATML = ("<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")

SYSTEM = """
{% set system = messages[0].content if messages[0].role == 'system' else '' %}
{% set rest = messages[1:] if messages[0].role == 'system' else messages %}
"""

AFTER_THOUGHTS = """
{% set thoughts = m.reasoning_content or '' %}
{% set text = (m.content or '') | trim %}
{% if '</think>' in text %}
{% set thoughts = text.split('</think>')[0].split('<think>')[-1].strip() %}
{% set text = text.split('</think>')[-1].strip() %}
{% endif %}
"""

LAST_QUESTION = """
{% set ns = namespace(last=0) %}
{% for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
"""

CHATML_SYSTEM = r"""
{% if system or tools %}
{{ '<|im_start|>system\n' + system }}
{% if tools %}{{ '\nYou may call: ' + tools | tojson }}{% endif %}
{{ '<|im_end|>\n' }}
{% endif %}
"""

CHATML_RESULTS = r"""
{% if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
"""

JSON_CALLS = r"""
{% for call in m.tool_calls or [] %}
{{ ('\n' if text or not loop.first else '') + '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{ (call.function.arguments | tojson) + '}\n</tool_call>' }}
{% endfor %}
"""

XML_CALLS = r"""
{% for call in m.tool_calls or [] %}
{{ ('\n\n' if text and loop.first else '\n' if not loop.first else '') + '<tool_call>\n<function=' }}
{{ call.function.name + '>\n' }}
{% for name, value in call.function.arguments | items %}
{{ '<parameter=' + name + '>\n' + (value | string) + '\n</parameter>\n' }}
{% endfor %}
{{ '</function>\n</tool_call>' }}
{% endfor %}
"""

HERMES_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
XML_CALL = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
THINKING_CHATML = (
    SYSTEM
    + CHATML_SYSTEM
    + LAST_QUESTION
    + "{% for m in rest %}{% if m.role == 'tool' %}"
    + CHATML_RESULTS
    + "{% elif m.role == 'assistant' %}"
    + AFTER_THOUGHTS
    + r"""
    {{ '<|im_start|>assistant\n' }}
    """
)
"""The beginning of Qwen's templates, up to what an answer says."""

CHATML_BETWEEN = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CHATML_AFTER_RESULT = CHATML_BETWEEN.format("\n<tool_response>\n{}\n</tool_response>").replace("user\n\n", "user\n")

HELLO = Said("Hello there!", "Hello there!")
FAMILIES = (
    Family(
        "chatml",
        "Qwen2.5, SmolLM2, Hermes, Yi, InternLM2",
        SYSTEM
        + CHATML_SYSTEM
        + "{% for m in rest %}{% if m.role == 'tool' %}"
        + CHATML_RESULTS
        + r"{% else %}{% set text = m.content or '' %}{{ '<|im_start|>' + m.role + '\n' + text }}"
        + JSON_CALLS
        + r"{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        + r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        CHATML,
        "<|im_end|>",
        CHATML_BETWEEN,
        HELLO,
        calling=Said("Let me see.\n" + HERMES_CALL, "Let me see.", calls=1),
        results=CHATML_AFTER_RESULT,
    ),
    Family(
        "llama3",
        "Llama 3.1, 3.2 and 3.3",
        SYSTEM
        + r"""
        {{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + strftime_now('%d %b %Y') + '\n' }}
        {{ system + '<|eot_id|>' }}
        {% for m in rest %}
        {% if m.tool_calls %}
        {{ '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + m.tool_calls[0].function.name }}
        {{ '", "parameters": ' + (m.tool_calls[0].function.arguments | tojson) + '}<|eot_id|>' }}
        {% elif m.role == 'tool' or m.role == 'ipython' %}
        {{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + (m.content | tojson) + '<|eot_id|>' }}
        {% else %}
        {{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
        {% if tools and loop.first %}
        {{ 'Call one of these as {"name": …, "parameters": …}: ' + (tools | tojson) + '\n\n' }}
        {% endif %}
        {{ m.content | trim + '<|eot_id|>' }}
        {% endif %}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
        """,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
        "<|eot_id|>",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        HELLO,
        bos="<|begin_of_text|>",
        calling=Said('{"name": "weather", "parameters": {"city": "Rome"}}', calls=1),
        results='<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"{}"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    Family(
        "gemma",
        "Gemma 1 and 2",
        r"""
        {{ bos_token }}
        {% if messages[0].role == 'system' %}{{ raise_exception('There is no system role') }}{% endif %}
        {% for m in messages %}
        {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles take turns') }}{% endif %}
        {{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
        {{ m.content | trim + '<end_of_turn>\n' }}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
        """,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<end_of_turn>\n<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
        HELLO,
        bos="<bos>",
        ends="<end_of_turn>",
        system=None,
    ),
    Family(
        "mistral",
        "Mistral v0.3 with the system prompt in the first message",
        SYSTEM
        + r"""
        {{ bos_token }}
        {% if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
        {% for m in rest %}
        {% if m.role == 'user' %}
        {{ '[INST]' + (system + '\n\n' if system and loop.first else '') + m.content + '[/INST]' }}
        {% elif m.tool_calls %}
        {{ '[TOOL_CALLS][' }}
        {% for call in m.tool_calls %}
        {% if call.id is not defined or call.id | length != 9 %}
        {{ raise_exception('An id has nine characters') }}
        {% endif %}
        {{ '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
        {{ ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']' + eos_token) }}
        {% endfor %}
        {% elif m.role == 'tool' %}
        {{ '[TOOL_RESULTS]{"content": ' + (m.content | tojson) + ', "call_id": "' + m.tool_call_id }}
        {{ '"}[/TOOL_RESULTS]' }}
        {% elif m.role == 'assistant' %}{{ m.content + eos_token }}
        {% else %}{{ raise_exception('No such role') }}{% endif %}
        {% endfor %}
        """,
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
        + ("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        "</s>",
        "</s>[INST]{}[/INST]",
        HELLO,
        bos="<s>",
        calling=Said('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}, "id": "call00000"}]', calls=1),
        results='</s>[TOOL_RESULTS]{{"content": "{}", "call_id": "call00000"}}[/TOOL_RESULTS]',
        system="in the first message",
    ),
    Family(
        "mistral_v13",
        "Magistral, Devstral, Mistral Small 3.2",
        SYSTEM
        + r"""
        {{ bos_token }}
        {% if system %}{{ '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{% endif %}
        {% if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
        {% for m in rest %}
        {% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}
        {% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
        {% elif m.role == 'assistant' %}
        {% if m.reasoning_content %}{{ '[THINK]' + m.reasoning_content + '[/THINK]' }}{% endif %}
        {{ m.content or '' }}
        {% for call in m.tool_calls or [] %}
        {{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) }}
        {% endfor %}
        {{ eos_token }}
        {% endif %}
        {% endfor %}
        """,
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]")
        + ("[TOOL_CALLS]", "[ARGS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        "</s>",
        "</s>[INST]{}[/INST]",
        HELLO,
        bos="<s>",
        thinking=Said("[THINK]That is easy.[/THINK]Hello there!", "Hello there!", "That is easy."),
        calling=Said('[THINK]I look.[/THINK][TOOL_CALLS]weather[ARGS]{"city": "Rome"}', "", "I look.", 1),
        results="</s>[TOOL_RESULTS]{}[/TOOL_RESULTS]",
        keeps_thoughts=True,
    ),
    Family(
        "phi",
        "Phi-4-mini, Phi-3.5",
        SYSTEM
        + r"""
        {% if system or tools %}
        {{ '<|system|>' + system + ('<|tool|>' + (tools | tojson) + '<|/tool|>' if tools else '') + '<|end|>' }}
        {% endif %}
        {% for m in rest %}
        {{ '<|' + m.role + '|>' + (m.content or '') }}
        {% if m.tool_calls %}
        {{ '<|tool_call|>[' }}
        {% for call in m.tool_calls %}
        {{ '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}' }}
        {{ ', ' if not loop.last else '' }}
        {% endfor %}
        {{ ']<|/tool_call|>' }}
        {% endif %}
        {{ '<|end|>' }}
        {% endfor %}
        {{ '<|assistant|>' if add_generation_prompt else eos_token }}
        """,
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>")
        + ("<|tool_call|>", "<|/tool_call|>"),
        "<|endoftext|>",
        "<|end|><|user|>{}<|end|><|assistant|>",
        HELLO,
        bos="<|endoftext|>",
        ends="<|end|>",
        calling=Said('<|tool_call|>[{"name": "weather", "arguments": {"city": "Rome"}}]<|/tool_call|>', calls=1),
        results="<|end|><|tool|>{}<|end|><|assistant|>",
    ),
    Family(
        "command_r7b",
        "Command R7B, Command A",
        SYSTEM
        + r"""
        {{ bos_token + '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system }}
        {% if tools %}{{ '\nYou may call: ' + tools | tojson }}{% endif %}
        {{ '<|END_OF_TURN_TOKEN|>' }}
        {% for m in rest %}
        {% if m.role == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' }}
        {% elif m.tool_calls %}
        {{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>' + (m.reasoning_content or '') }}
        {{ '<|END_THINKING|><|START_ACTION|>[\n' }}
        {% for call in m.tool_calls %}
        {{ '    {"tool_call_id": "' + (loop.index0 | string) + '", "tool_name": "' + call.function.name }}
        {{ '", "parameters": ' + (call.function.arguments | tojson) + '}' + (',' if not loop.last else '') + '\n' }}
        {% endfor %}
        {{ ']<|END_ACTION|><|END_OF_TURN_TOKEN|>' }}
        {% elif m.role == 'assistant' %}
        {{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' + m.content }}
        {{ '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}
        {% elif m.role == 'tool' %}
        {{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>[' + (m.content | tojson) }}
        {{ ']<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>' }}
        {% endif %}
        {% endfor %}
        {{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' if add_generation_prompt else '' }}
        """,
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>")
        + ("<|CHATBOT_TOKEN|>",),
        "<|END_OF_TURN_TOKEN|>",
        "<|END_RESPONSE|><|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        Said("<|START_RESPONSE|>Hello there!", "Hello there!"),
        added=("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")
        + ("<|START_ACTION|>", "<|END_ACTION|>", "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"),
        bos="<BOS_TOKEN>",
        closes="<|END_RESPONSE|>",
        thinking=Said(
            "<|START_THINKING|>That is easy.<|END_THINKING|><|START_RESPONSE|>Hello there!",
            "Hello there!",
            "That is easy.",
        ),
        calling=Said(
            '<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": '
            '"weather", "parameters": {"city": "Rome"}}\n]<|END_ACTION|>',
            "",
            "I look.",
            1,
        ),
        results='<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>["{}"]'
        "<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    Family(
        "deepseek_r1",
        "DeepSeek R1 and its distillations",
        SYSTEM
        + r"""
        {{ bos_token + system }}
        {% for m in rest %}
        {% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
        {% elif m.role == 'assistant' %}
        {{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}
        {% endif %}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}
        """,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜><｜User｜>{}<｜Assistant｜><think>\n",
        Said("\n</think>\n\nHello there!", "Hello there!"),
        added=("<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
        thinking=Said("That is easy.\n</think>\n\nHello there!", "Hello there!", "That is easy."),
    ),
    Family(
        "qwen3",
        "Qwen3, with and without thoughts",
        THINKING_CHATML
        + r"""
        {% if loop.index0 > ns.last and thoughts %}{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}
        {{ text }}
        """
        + JSON_CALLS
        + r"""
        {{ '<|im_end|>\n' }}
        {% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}
        {% endfor %}
        {% if add_generation_prompt %}
        {{ '<|im_start|>assistant\n' }}
        {% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
        {% endif %}
        """,
        CHATML,
        "<|im_end|>",
        CHATML_BETWEEN,
        HELLO,
        added=THINK,
        thinking=Said("<think>\nThat is easy.\n</think>\n\nHello there!", "Hello there!", "That is easy."),
        calling=Said("<think>\nI look.\n</think>\n\n" + HERMES_CALL, "", "I look.", 1),
        results=CHATML_AFTER_RESULT,
        options={"enable_thinking": False},
        opening="<think>\n\n</think>\n\n",
    ),
    Family(
        "qwen3_5",
        "Qwen3.5, Nemotron 3, Qwen3-Coder",
        THINKING_CHATML
        + r"""
        {% if loop.index0 > ns.last %}{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}
        {{ text }}
        """
        + XML_CALLS
        + r"""
        {{ '<|im_end|>\n' }}
        {% elif m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
        {% else %}{{ raise_exception('No such role') }}{% endif %}
        {% endfor %}
        {% if add_generation_prompt %}
        {{ '<|im_start|>assistant\n<think>\n' }}
        {% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}
        {% endif %}
        """,
        CHATML,
        "<|im_end|>",
        CHATML_BETWEEN + "<think>\n",
        Said("\n</think>\n\nHello there!", "Hello there!"),
        added=THINK,
        thinking=Said("That is easy.\n</think>\n\nHello there!", "Hello there!", "That is easy."),
        calling=Said("I look.\n</think>\n\n" + XML_CALL, "", "I look.", 1),
        results=CHATML_AFTER_RESULT + "<think>\n",
        options={"enable_thinking": False},
        opening="<think>\n\n</think>\n\n",
    ),
    Family(
        "gpt_oss",
        "gpt-oss",
        SYSTEM
        + r"""
        {{ '<|start|>system<|message|>Today: ' + strftime_now('%Y-%m-%d') + '\nReasoning: ' }}
        {{ (reasoning_effort or 'medium') + '<|end|>' }}
        {% if system or tools %}
        {{ '<|start|>developer<|message|>' + system + (tools | tojson if tools else '') + '<|end|>' }}
        {% endif %}
        {% set ns = namespace(final=-1, called='') %}
        {% for m in rest %}
        {% if m.role == 'assistant' and not m.tool_calls %}{% set ns.final = loop.index0 %}{% endif %}
        {% endfor %}
        {% for m in rest %}
        {% if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}
        {% elif m.tool_calls %}
        {% set ns.called = m.tool_calls[0].function.name %}
        {% if loop.index0 > ns.final and m.reasoning_content %}
        {{ '<|start|>assistant<|channel|>analysis<|message|>' + m.reasoning_content + '<|end|>' }}
        {% endif %}
        {{ '<|start|>assistant to=functions.' + ns.called + '<|channel|>commentary json<|message|>' }}
        {{ (m.tool_calls[0].function.arguments | tojson) + '<|call|>' }}
        {% elif m.role == 'assistant' %}
        {{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
        {% elif m.role == 'tool' %}
        {{ '<|start|>functions.' + ns.called + ' to=assistant<|channel|>commentary<|message|>' }}
        {{ (m.content | tojson) + '<|end|>' }}
        {% endif %}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}
        """,
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")
        + ("<|startoftext|>",),
        "<|return|>",
        "<|end|><|start|>user<|message|>{}<|end|><|start|>assistant",
        Said("<|channel|>final<|message|>Hello there!", "Hello there!"),
        bos="<|startoftext|>",
        thinking=Said(
            "<|channel|>analysis<|message|>That is easy.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Hello there!",
            "Hello there!",
            "That is easy.",
        ),
        calling=Said(
            "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
            '<|constrain|>json<|message|>{"city": "Rome"}',
            "",
            "I look.",
            1,
        ),
        call_end="<|call|>",
        results='<|call|><|start|>functions.weather to=assistant<|channel|>commentary<|message|>"{}"<|end|>'
        "<|start|>assistant",
    ),
    Family(
        "glm",
        "GLM-4.5 and 4.6",
        SYSTEM
        + LAST_QUESTION
        + r"""
        {{ '[gMASK]<sop>' }}
        {% if system %}{{ '<|system|>\n' + system }}{% endif %}
        {% if tools %}{{ '<|system|>\nYou may call: ' + tools | tojson }}{% endif %}
        {% for m in rest %}
        {% if m.role == 'user' %}{{ '<|user|>\n' + m.content }}
        {% elif m.role == 'assistant' %}
        """
        + AFTER_THOUGHTS
        + r"""
        {{ '<|assistant|>\n<think>' + (thoughts if loop.index0 > ns.last else '') + '</think>' }}
        {{ '\n' + text if text else '' }}
        {% for call in m.tool_calls or [] %}
        {{ '\n<tool_call>' + call.function.name + '\n' }}
        {% for name, value in call.function.arguments.items() %}
        {{ '<arg_key>' + name + '</arg_key>\n<arg_value>' + (value | string) + '</arg_value>\n' }}
        {% endfor %}
        {{ '</tool_call>' }}
        {% endfor %}
        {% elif m.role == 'tool' %}
        {{ ('<|observation|>' if loop.previtem.role != 'tool' else '') + '\n<tool_response>\n' + m.content }}
        {{ '\n</tool_response>' }}
        {% endif %}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<|assistant|>' }}
        {% if enable_thinking is defined and not enable_thinking %}{{ '\n<think></think>' }}{% endif %}
        {% endif %}
        """,
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
        "<|endoftext|>",
        "<|user|>\n{}<|assistant|>",
        Said("\n<think></think>\nHello there!", "Hello there!"),
        added=(*THINK, "<tool_response>", "</tool_response>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        ends="<|user|>",
        thinking=Said("\n<think>That is easy.</think>\nHello there!", "Hello there!", "That is easy."),
        calling=Said(
            "\n<think>I look.</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
            "</tool_call>",
            "",
            "I look.",
            1,
        ),
        call_end="<|observation|>",
        results="<|observation|>\n<tool_response>\n{}\n</tool_response><|assistant|>",
        options={"enable_thinking": False},
        opening="\n<think></think>",
    ),
    Family(
        "nemotron",
        "Nemotron Nano v2",
        SYSTEM
        + r"""
        {{ '<SPECIAL_10>System\n' + system }}
        {% if tools %}{{ '\nYou may call: ' + tools | tojson }}{% endif %}
        {{ '\n' }}
        {% for m in rest %}
        {% if m.role == 'user' %}{{ '<SPECIAL_11>User\n' + m.content + '\n' }}
        {% elif m.role == 'tool' %}
        {% if loop.previtem.role != 'tool' %}{{ '<SPECIAL_11>User\n<TOOL_RESPONSE>[' }}{% endif %}
        {{ m.content + (', ' if not loop.last and loop.nextitem.role == 'tool' else '') }}
        {% if loop.last or loop.nextitem.role != 'tool' %}{{ ']</TOOL_RESPONSE>\n' }}{% endif %}
        {% else %}
        """
        + AFTER_THOUGHTS
        + r"""
        {{ '<SPECIAL_11>Assistant\n' + text }}
        {% if m.tool_calls %}
        {{ ('\n' if text else '') + '<TOOLCALL>[' }}
        {% for call in m.tool_calls %}
        {{ '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}' }}
        {{ ', ' if not loop.last else '' }}
        {% endfor %}
        {{ ']</TOOLCALL>' }}
        {% endif %}
        {{ '\n<SPECIAL_12>\n' }}
        {% endif %}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<SPECIAL_11>Assistant\n<think>\n' }}{% endif %}
        """,
        ("<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"),
        "<SPECIAL_12>",
        "\n<SPECIAL_12>\n<SPECIAL_11>User\n{}\n<SPECIAL_11>Assistant\n<think>\n",
        Said("</think>\nHello there!", "Hello there!"),
        added=("<think>", "</think>", "<TOOLCALL>", "</TOOLCALL>"),
        closes="\n",
        thinking=Said("That is easy.\n</think>\nHello there!", "Hello there!", "That is easy."),
        calling=Said(
            'I look.\n</think>\n<TOOLCALL>[{"name": "weather", "arguments": {"city": "Rome"}}]</TOOLCALL>',
            "",
            "I look.",
            1,
        ),
        results="\n<SPECIAL_12>\n<SPECIAL_11>User\n<TOOL_RESPONSE>[{}]</TOOL_RESPONSE>\n<SPECIAL_11>Assistant\n<think>\n",
    ),
    Family(
        "deepseek_coder",
        "deepseek-coder",
        SYSTEM
        + r"""
        {{ bos_token + (system or 'You write code.') + '\n' }}
        {% for m in rest %}
        {% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n' }}
        {% else %}{{ '### Response:\n' + m.content + '\n<|EOT|>\n' }}{% endif %}
        {% endfor %}
        {% if add_generation_prompt %}{{ '### Response:' }}{% endif %}
        """,
        ("<｜begin▁of▁sentence｜>", "<|EOT|>"),
        "<|EOT|>",
        "\n<|EOT|>\n### Instruction:\n{}\n### Response:",
        Said("\nHello there!", "Hello there!"),
        bos="<｜begin▁of▁sentence｜>",
        closes="\n",
    ),
    Family(
        "llama2",
        "Llama 2, Mistral 7B v0.1",
        SYSTEM
        + r"""
        {% for m in rest %}
        {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles take turns') }}{% endif %}
        {% if m.role == 'user' %}
        {{ bos_token + '[INST] ' + ('<<SYS>>\n' + system + '\n<</SYS>>\n\n' if system and loop.first else '') }}
        {{ m.content | trim + ' [/INST]' }}
        {% else %}{{ ' ' + (m.content | trim) + ' ' + eos_token }}{% endif %}
        {% endfor %}
        """,
        ("<s>", "</s>"),
        "</s>",
        " </s><s>[INST] {} [/INST]",
        Said(" Hello there!", "Hello there!"),
        bos="<s>",
        closes=" ",
        system="in the first message",
    ),
    Family(
        "lfm2",
        "LFM2",
        SYSTEM
        + r"""
        {{ bos_token }}
        {% if system or tools %}
        {{ '<|im_start|>system\n' + system + (' Tools: ' + (tools | tojson) if tools else '') + '<|im_end|>\n' }}
        {% endif %}
        {% for m in rest %}
        {{ '<|im_start|>' + m.role + '\n' }}
        {% if m.tool_calls %}
        {{ '<|tool_call_start|>[' }}
        {% for call in m.tool_calls %}
        {{ (', ' if not loop.first else '') + call.function.name + '(' }}
        {% for name, value in call.function.arguments | items %}
        {{ (', ' if not loop.first else '') + name + '=' + (value | tojson) }}
        {% endfor %}
        {{ ')' }}
        {% endfor %}
        {{ ']<|tool_call_end|>' }}
        {% endif %}
        {{ (m.content or '') + '<|im_end|>\n' }}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
        """,
        ("<|startoftext|>", *CHATML, "<|tool_call_start|>", "<|tool_call_end|>"),
        "<|im_end|>",
        CHATML_BETWEEN,
        HELLO,
        bos="<|startoftext|>",
        calling=Said('<|tool_call_start|>[weather(city="Rome")]<|tool_call_end|>', calls=1),
        results="<|im_end|>\n<|im_start|>tool\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
    Family(
        "seed_oss",
        "Seed-OSS",
        SYSTEM
        + r"""
        {% if system or tools %}
        {{ bos_token + 'system\n' + system + ('\nTools: ' + (tools | tojson) if tools else '') + eos_token }}
        {% endif %}
        {% for m in rest %}
        {{ bos_token + m.role + '\n' }}
        {% if m.reasoning_content %}{{ '<seed:think>' + m.reasoning_content + '</seed:think>' }}{% endif %}
        {{ m.content or '' }}
        {% for call in m.tool_calls or [] %}
        {{ '<seed:tool_call>\n<function=' + call.function.name + '>\n' }}
        {% for name, value in call.function.arguments | items %}
        {{ '<parameter=' + name + '>' + (value | string) + '</parameter>\n' }}
        {% endfor %}
        {{ '</function>\n</seed:tool_call>' }}
        {% endfor %}
        {{ eos_token }}
        {% endfor %}
        {% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}
        """,
        ("<seed:bos>", "<seed:eos>"),
        "<seed:eos>",
        "<seed:eos><seed:bos>user\n{}<seed:eos><seed:bos>assistant\n",
        HELLO,
        added=("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
        bos="<seed:bos>",
        thinking=Said("<seed:think>That is easy.</seed:think>Hello there!", "Hello there!", "That is easy."),
        calling=Said(
            "<seed:think>I look.</seed:think><seed:tool_call>\n<function=weather>\n<parameter=city>Rome</parameter>\n"
            "</function>\n</seed:tool_call>",
            "",
            "I look.",
            1,
        ),
        results="<seed:eos><seed:bos>tool\n{}<seed:eos><seed:bos>assistant\n",
        keeps_thoughts=True,
    ),
    Family(
        "parts",
        "SmolVLM and other models that see",
        r"""
        {{ bos_token }}
        {% for m in messages %}
        {{ m.role | capitalize + ':' }}
        {% for part in m.content %}{{ ' ' + part['text'] }}{% endfor %}
        {{ '<end_of_utterance>\n' }}
        {% endfor %}
        {% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
        """,
        ("<|im_start|>", "<end_of_utterance>"),
        "<end_of_utterance>",
        "<end_of_utterance>\nUser: {}<end_of_utterance>\nAssistant:",
        Said(" Hello there!", "Hello there!"),
        bos="<|im_start|>",
    ),
    Family(
        "system_in_the_last_message",
        "Mistral 7B v0.3, Mistral Nemo, Mixtral 8x22B",
        SYSTEM
        + r"""
        {{ bos_token }}
        {% for m in rest %}
        {% if m.role == 'user' %}
        {{ '[INST] ' + (system + '\n\n' if system and loop.last else '') + m.content + '[/INST]' }}
        {% else %}{{ m.content + eos_token }}{% endif %}
        {% endfor %}
        """,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        "</s>[INST] Be kind.\n\n{}[/INST]",
        HELLO,
        bos="<s>",
        system="in every message",
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}
