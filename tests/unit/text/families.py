"""What models of all families write where they call tools, and what it means."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

_WHERE = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "units": {"type": "array"},
}
_WHAT = {
    "path": {"type": "string"},
    "content": {"type": "string"},
    "mode": {"type": "object"},
    "tags": {"type": "array"},
    "force": {"type": "boolean"},
    "ratio": {"type": "number"},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }
    for name, properties in (("get_weather", _WHERE), ("get_time", _WHERE), ("write_file", _WHAT))
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


REASONING = {
    "gemma4": ("<|channel>thought", "<channel|>"),
    "kimi_k3": ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    "longcat": ("<longcat_think>", "</longcat_think>"),
}
"""The markers of reasoning, of families whose are their own."""
THINK = ("<think>", "</think>")

CODE = 'def f(x):\n\tif x < 1 and "é" in x:  # 日本 & more\n\t\treturn {"a": [x]}\n'
"""An argument with all that could be taken for something else."""
FILE: Call = (
    "write_file",
    {
        "path": "src/a b.py",
        "content": CODE,
        "mode": {"own": {"r": True, "w": None}, "bits": [6, 4.5, -1]},
        "tags": ["x, y", "z}"],
        "force": True,
        "ratio": 0.25,
    },
)
PARIS: Call = ("get_weather", {"city": "Paris", "days": 3})
ROME: Call = ("get_time", {"city": "Rome"})
STRIPPED: Call = (FILE[0], FILE[1] | {"content": CODE.strip()})
"""As families have it that do not keep white space around a value."""
_PLAIN = [
    (key, value if isinstance(value, str) else json.dumps(value)) for key, value in FILE[1].items()
]
"""The arguments as families write them that quote no text."""

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
        Sample(
            "<think>\nA file.\n</think>\n\n<tool_call>\n"
            + json.dumps({"name": FILE[0], "arguments": FILE[1]}, ensure_ascii=False)
            + "\n</tool_call>",
            [FILE],
            before="\n\n",
            reasoning="\nA file.\n",
        ),
        Sample(
            "<tool_call>\n"
            + json.dumps({"name": FILE[0], "arguments": FILE[1]}, indent=2)
            + "\n</tool_call>\n<tool_call>\n"
            + '{"arguments": {"city": "Rome"}, "name": "get_time"}\n</tool_call>',
            [FILE, ROME],
            after="\n",
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
        ),
        Sample(
            "<tool_call>\n<function=write_file>\n"
            + "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in _PLAIN)
            + "</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n<parameter=city>\n"
            "Rome\n</parameter>\n</function>\n</tool_call>",
            [FILE, ROME],
            after="\n",
        ),
    ],
    "glm47": [
        Sample(
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
            [PARIS],
        ),
        Sample("<tool_call>get_time\n</tool_call>", [("get_time", {})]),
        Sample(
            "<think>A file.</think>Now.<tool_call>write_file"
            + "".join(
                f"<arg_key>{key}</arg_key><arg_value>{text}</arg_value>" for key, text in _PLAIN
            )
            + "</tool_call>",
            [STRIPPED],
            before="Now.",
            reasoning="A file.",
        ),
    ],
    "laguna": [
        Sample(
            "<tool_call>get_time<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>",
            [ROME],
        ),
        Sample(
            "<tool_call>write_file\n"
            + "".join(
                f"<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n" for key, text in _PLAIN
            )
            + "</tool_call>\n<tool_call>get_time\n<arg_key>city</arg_key>\n"
            "<arg_value>Rome</arg_value>\n</tool_call>",
            [STRIPPED, ROME],
            after="\n",
        ),
    ],
    "longcat": [
        Sample(
            "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n"
            "<longcat_arg_value>Paris</longcat_arg_value>\n<longcat_arg_key>days"
            "</longcat_arg_key>\n<longcat_arg_value>3</longcat_arg_value>\n</longcat_tool_call>",
            [PARIS],
        ),
        Sample(
            "<longcat_think>A file.</longcat_think><longcat_tool_call>write_file\n"
            + "".join(
                f"<longcat_arg_key>{key}</longcat_arg_key>\n"
                f"<longcat_arg_value>{text}</longcat_arg_value>\n"
                for key, text in _PLAIN
            )
            + "</longcat_tool_call>",
            [STRIPPED],
            reasoning="A file.",
        ),
    ],
    "minicpm5": [
        Sample(
            '<function name="get_weather"><param name="city">Paris</param>'
            '<param name="days">3</param></function><function name="get_time">'
            '<param name="city"><![CDATA[Rome]]></param></function>',
            [PARIS, ROME],
        ),
        Sample(
            '<think>\nA file.\n</think>\n\n<function name="write_file">'
            + "".join(f'<param name="{key}"><![CDATA[{text}]]></param>' for key, text in _PLAIN)
            + "</function>",
            [FILE],
            before="\n\n",
            reasoning="\nA file.\n",
        ),
    ],
    "minimax_m2": [
        Sample(
            '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris'
            '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n<invoke '
            'name="get_time">\n<parameter name="city">Rome</parameter>\n</invoke>\n'
            "</minimax:tool_call>",
            [PARIS, ROME],
        ),
        Sample(
            '<think>A file.</think>\n<minimax:tool_call>\n<invoke name="write_file">\n'
            + "".join(f'<parameter name="{key}">{text}</parameter>\n' for key, text in _PLAIN)
            + "</invoke>\n</minimax:tool_call>",
            [STRIPPED],
            before="\n",
            reasoning="A file.",
        ),
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
        Sample(
            "[TOOL_CALLS]write_file[ARGS]" + json.dumps(FILE[1], ensure_ascii=False),
            [FILE],
        ),
        Sample(
            "Two.[TOOL_CALLS]"
            + json.dumps(
                [
                    {"name": FILE[0], "arguments": FILE[1], "id": "000000001"},
                    {"name": ROME[0], "arguments": json.dumps(ROME[1]), "id": "000000002"},
                ]
            ),
            [FILE, ROME],
            before="Two.",
            ids=["000000001", "000000002"],
        ),
    ],
    "muse_spark": [
        Sample(
            '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter '
            'name="city">Paris</atem:parameter>\n<atem:parameter name="days">3</atem:parameter>'
            "\n</atem:invoke>\n</atem:function_calls>",
            [PARIS],
        ),
        Sample(
            '<atem:function_calls>\n<atem:invoke name="write_file">\n'
            + "".join(
                f'<atem:parameter name="{key}">{text}</atem:parameter>\n' for key, text in _PLAIN
            )
            + '</atem:invoke>\n<atem:invoke name="get_time">\n<atem:parameter name="city">Rome'
            "</atem:parameter>\n</atem:invoke>\n</atem:function_calls>",
            [STRIPPED, ROME],
        ),
    ],
    "pythonic": [
        Sample(
            "<|tool_call_start|>[get_weather(city=\"Paris\", days=3), get_time(city='Rome')]"
            "<|tool_call_end|>Wait.",
            [PARIS, ROME],
            after="Wait.",
        ),
        Sample(
            "<think>A file.</think><|tool_call_start|>[write_file("
            + ", ".join(f"{key}={value!r}" for key, value in FILE[1].items())
            + ")]<|tool_call_end|>",
            [FILE],
            reasoning="A file.",
        ),
        Sample(
            '<|tool_call_start|>[write_file(mode={"r": true, "w": null}, tags=["x]", ")"])]'
            "<|tool_call_end|>",
            [("write_file", {"mode": {"r": True, "w": None}, "tags": ["x]", ")"]})],
        ),
    ],
    "kimi_k2": [
        Sample(
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
            '<|tool_call_argument_begin|>{"city": "Paris", "days": 3}<|tool_call_end|>'
            '<|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{"city": "Rome"}'
            "<|tool_call_end|><|tool_calls_section_end|>",
            [PARIS, ROME],
            ids=["functions.get_weather:0", "functions.get_time:1"],
        ),
        Sample(
            "<think>A file.</think>So.<|tool_calls_section_begin|><|tool_call_begin|>"
            "functions.write_file:3<|tool_call_argument_begin|>"
            + json.dumps(FILE[1], ensure_ascii=False)
            + "<|tool_call_end|><|tool_calls_section_end|>",
            [FILE],
            before="So.",
            reasoning="A file.",
            ids=["functions.write_file:3"],
        ),
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
        ),
        Sample(
            "<|open|>think<|sep|>A file.<|close|>think<|sep|><|open|>tools<|sep|>"
            '<|open|>call tool="write_file" index="1"<|sep|>'
            + "".join(
                f'<|open|>argument key="{key}" type="{kind}"<|sep|>{text}<|close|>argument<|sep|>'
                for (key, text), kind in zip(
                    _PLAIN,
                    ("string", "string", "object", "array", "boolean", "number"),
                    strict=True,
                )
            )
            + "<|close|>call<|sep|><|close|>tools<|sep|>",
            [FILE],
            reasoning="A file.",
        ),
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
        Sample(
            '<|channel>thought\nA file.<channel|><|tool_call>call:write_file{path:<|"|>src/a b.py'
            f'<|"|>,content:<|"|>{CODE}<|"|>,mode:{{own:{{r:true,w:null}},bits:[6,4.5,-1]}},'
            'tags:[<|"|>x, y<|"|>,<|"|>z}<|"|>],force:true,ratio:0.25}<tool_call|>',
            [FILE],
            reasoning="\nA file.",
        ),
    ],
    "function_gemma": [
        Sample(
            "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}"
            "<end_function_call>",
            [PARIS],
        ),
        Sample(
            "<start_function_call>call:write_file{path:<escape>src/a b.py<escape>,force:true,"
            "ratio:0.25}<end_function_call><start_function_call>call:get_time{city:<escape>Rome<escape>}"
            "<end_function_call>",
            [("write_file", {"path": "src/a b.py", "force": True, "ratio": 0.25}), ROME],
        ),
    ],
}
