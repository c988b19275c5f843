"""The tools of the chat demo: two harmless functions, and how a call of one is run."""

import ast
import json
import operator
from datetime import datetime
from zoneinfo import ZoneInfo

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def calculate(expression: str) -> str:
    """Calculate with numbers.

    Args:
        expression: Numbers, parentheses and the signs + - * / // %, such as "3 * (4 + 5)".
    """
    return str(_value(ast.parse(expression.strip(), mode="eval").body))


def _value(node: ast.expr) -> float:
    """Return what a part of an expression comes to; nothing but arithmetic is run."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=sign, operand=part) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_value(part))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_value(left), _value(right))
    raise ValueError(f"{ast.unparse(node)!r} is no arithmetic")


def current_time(timezone: str = "UTC") -> str:
    """Tell the date and the time.

    Args:
        timezone: A name of the IANA database, such as "Europe/Paris".
    """
    return f"{datetime.now(ZoneInfo(timezone)):%A, %Y-%m-%d %H:%M %Z}"


TOOLS = [calculate, current_time]


def result_of(call):
    """Run a call of a tool and return its result as a message. An error is a result too, which the model can read."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    tool = next((tool for tool in TOOLS if tool.__name__ == name), None)
    try:
        if tool is None:
            raise ValueError(f"there is no tool {name!r}")
        content = tool(**(json.loads(arguments) if isinstance(arguments, str) else arguments))
    except Exception as error:  # the model may have written anything
        content = f"error: {error}"
    message = {"role": "tool", "name": name, "content": content}
    return message | ({"tool_call_id": call["id"]} if "id" in call else {})
