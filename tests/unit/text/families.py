"""What models of all families write where they call tools, and what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "units": {"type": "array"},
                },
            },
        },
    }
    for name in ("get_weather", "get_time")
]

Call = tuple[str, dict[str, Any]]


@dataclass
class Sample:
    """What a model of one family writes, and what it means."""

    text: str
    calls: list[Call]
    before: str = ""
    after: str = ""
    reasoning: str = ""
    ids: list[str] = field(default_factory=list)


PARIS: Call = ("get_weather", {"city": "Paris", "days": 3})
ROME: Call = ("get_time", {"city": "Rome"})

SAMPLES: dict[str, list[Sample]] = {
    "json_tools": [
        Sample(
            'One moment.\n<tool_call>\n{"name": "get_weather", "arguments": '
            '{"city": "Paris", "days": 3}}\n</tool_call>\n<tool_call>\n{"name": "get_time", '
            '"arguments": {"city": "Rome"}}\n</tool_call>',
            [PARIS, ROME],
            before="One moment.\n",
            after="\n",
        ),
        Sample('<tool_call>{"name": "get_time"}</tool_call>', [("get_time", {})]),
        Sample(
            '<tool_call>{"name": "get_time", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>',
            [ROME],
        ),
    ],
    "qwen3_coder": [
        Sample(
            "<think>\nWeather first.\n</think>\n\n<tool_call>\n<function=get_weather>\n"
            "<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
            "</function>\n</tool_call> done",
            [PARIS],
            before="\n\n",
            after=" done",
            reasoning="\nWeather first.\n",
        )
    ],
    "glm47": [
        Sample(
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
            [PARIS],
        ),
        Sample("<tool_call>get_time\n</tool_call>", [("get_time", {})]),
    ],
    "laguna": [
        Sample(
            "<tool_call>get_time<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>",
            [ROME],
        )
    ],
    "longcat": [
        Sample(
            "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n"
            "<longcat_arg_value>Paris</longcat_arg_value>\n<longcat_arg_key>days"
            "</longcat_arg_key>\n<longcat_arg_value>3</longcat_arg_value>\n</longcat_tool_call>",
            [PARIS],
        )
    ],
    "minicpm5": [
        Sample(
            '<function name="get_weather"><param name="city">Paris</param>'
            '<param name="days">3</param></function><function name="get_time">'
            '<param name="city"><![CDATA[Rome]]></param></function>',
            [PARIS, ROME],
        )
    ],
    "minimax_m2": [
        Sample(
            '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris'
            '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n<invoke '
            'name="get_time">\n<parameter name="city">Rome</parameter>\n</invoke>\n'
            "</minimax:tool_call>",
            [PARIS, ROME],
        )
    ],
    "mistral": [
        Sample(
            'Sure.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}'
            '[TOOL_CALLS]get_time[ARGS]{"city": "Rome"}',
            [PARIS, ROME],
            before="Sure.",
        ),
        Sample(
            '[TOOL_CALLS] [{"name": "get_time", "arguments": {"city": "Rome"}, "id": "abcdefghi"}]',
            [ROME],
            ids=["abcdefghi"],
        ),
    ],
    "muse_spark": [
        Sample(
            '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter '
            'name="city">Paris</atem:parameter>\n<atem:parameter name="days">3</atem:parameter>'
            "\n</atem:invoke>\n</atem:function_calls>",
            [PARIS],
        )
    ],
    "pythonic": [
        Sample(
            "<|tool_call_start|>[get_weather(city=\"Paris\", days=3), get_time(city='Rome')]"
            "<|tool_call_end|>Wait.",
            [PARIS, ROME],
            after="Wait.",
        )
    ],
    "kimi_k2": [
        Sample(
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
            '<|tool_call_argument_begin|>{"city": "Paris", "days": 3}<|tool_call_end|>'
            '<|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{"city": "Rome"}'
            "<|tool_call_end|><|tool_calls_section_end|>",
            [PARIS, ROME],
            ids=["functions.get_weather:0", "functions.get_time:1"],
        )
    ],
    "kimi_k3": [
        Sample(
            '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>'
            '<|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|>'
            '<|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|>'
            '<|close|>call<|sep|><|open|>call tool="get_time" index="2"<|sep|>'
            '<|open|>json type="object"<|sep|>{"city": "Rome"}<|close|>json<|sep|>'
            "<|close|>call<|sep|><|close|>tools<|sep|>",
            [PARIS, ROME],
        )
    ],
    "gemma4": [
        Sample(
            'Yes<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>',
            [PARIS],
            before="Yes",
        ),
        Sample(
            '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}'
            'call:get_time{city:<|"|>Rome<|"|>}<tool_call|>',
            [PARIS, ROME],
        ),
    ],
    "function_gemma": [
        Sample(
            "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}"
            "<end_function_call>",
            [PARIS],
        )
    ],
}
